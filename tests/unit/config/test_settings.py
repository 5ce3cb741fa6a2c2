"""Settings: where they are read from, what is refused, and what is never shown."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from service.config.address import Listen, NatsServers
from service.config.settings import Settings, effective, load_settings
from service.errors import SettingsError

TOKEN = "sup3r-s3cret-t0ken"


def refusal(environ: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(environ)
    return str(caught.value)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


# Where settings come from


def test_an_empty_environment_gives_the_defaults() -> None:
    assert effective(load_settings({})) == {
        "api_token": "not set",
        "api_token_file": "not set",
        "api_url": "https://stream.pointillist.com/event",
        "api_ca_file": "not set",
        "api_proxy": "not set",
        "http_client": "pyreqwest",
        "request_timeout": "10s",
        "max_concurrency": "256",
        "max_age": "7d",
        "retry_max_delay": "5m",
        "grpc_listen": "127.0.0.1:50051",
        "metrics_listen": "127.0.0.1:9464",
        "health_listen": "off",
        "reflection": "true",
        "tls_cert_file": "not set",
        "tls_key_file": "not set",
        "tls_client_ca_file": "not set",
        "callers_file": "not set",
        "outbox_url": "sqlite:///outbox.db",
        "nats_credentials_file": "not set",
        "nats_ca_file": "not set",
        "nats_cert_file": "not set",
        "nats_key_file": "not set",
        "nats_stream": "POINTILLIST",
        "nats_replicas": "1",
        "outbox_max_bytes": "10GiB",
        "outbox_max_events": "not set",
        "disk_free_floor": "512MiB",
        "duplicate_window": "1d",
        "duplicate_ids": "10000000",
        "max_calls": "2000",
        "dead_letter_max_events": "1000000",
        "relay_replicas": "1",
        "relay_workers": "0",
        "mapping_file": "not set",
        "shutdown_delay": "0s",
        "shutdown_grace": "15s",
        "log_level": "info",
        "log_format": "not set",
    }


def test_settings_are_read_from_the_environment() -> None:
    settings = load_settings(
        {
            "POINTILLIST_API_URL": "http://127.0.0.1:8080/event",
            "POINTILLIST_GRPC_LISTEN": "[::1]:0",
            "POINTILLIST_REQUEST_TIMEOUT": "250ms",
            "POINTILLIST_OUTBOX_MAX_BYTES": "64KiB",
            "POINTILLIST_OUTBOX_MAX_EVENTS": "1000",
            "POINTILLIST_REFLECTION": "false",
            "POINTILLIST_HTTP_CLIENT": "httpx2",
            "POINTILLIST_LOG_FORMAT": "text",
            "PATH": "/bin",
        }
    )
    assert settings.api_url == "http://127.0.0.1:8080/event"
    assert settings.grpc_listen == Listen("::1", 0)
    assert settings.request_timeout == 0.25
    assert settings.outbox_max_bytes == 65536
    assert settings.outbox_max_events == 1000
    assert settings.reflection is False
    assert settings.http_client == "httpx2"
    assert settings.log_format == "text"


def test_settings_are_read_from_a_toml_file_in_its_own_types(tmp_path: Path) -> None:
    file = write(
        tmp_path / "p.toml", 'max_age = "2d"\nmax_concurrency = 8\nreflection = false\noutbox_max_bytes = 1000\n'
    )
    settings = load_settings({"POINTILLIST_CONFIG_FILE": file})
    assert (settings.max_age, settings.max_concurrency, settings.reflection) == (172800.0, 8, False)
    assert settings.outbox_max_bytes == 1000


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "p.toml", "max_concurrency = 8\nduplicate_ids = 5\n")
    settings = load_settings({"POINTILLIST_CONFIG_FILE": file, "POINTILLIST_MAX_CONCURRENCY": "9"})
    assert (settings.max_concurrency, settings.duplicate_ids) == (9, 5)


def test_settings_made_directly_do_not_look_at_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POINTILLIST_MAX_CONCURRENCY", "9")
    monkeypatch.setenv("MAX_CONCURRENCY", "9")
    monkeypatch.setenv("API_URL", "http://elsewhere.test/")
    settings = Settings(request_timeout=0.5)
    assert (settings.max_concurrency, settings.request_timeout) == (256, 0.5)
    assert settings.api_url == "https://stream.pointillist.com/event"


def test_an_orchestrators_service_links_are_ignored() -> None:
    links = {
        "POINTILLIST_DESTINATION_PORT": "tcp://10.0.0.1:50051",
        "POINTILLIST_DESTINATION_SERVICE_HOST": "10.0.0.1",
        "POINTILLIST_DESTINATION_PORT_50051_TCP_ADDR": "10.0.0.1",
    }
    assert load_settings(links) == load_settings({})


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings({}).max_concurrency = 1


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


# Empty values


@pytest.mark.parametrize("name", ["METRICS_LISTEN", "HEALTH_LISTEN"])
def test_an_empty_address_turns_a_listener_off(name: str) -> None:
    assert effective(load_settings({f"POINTILLIST_{name}": ""}))[name.lower()] == "off"


@pytest.mark.parametrize("name", ["API_TOKEN", "API_TOKEN_FILE", "OUTBOX_MAX_EVENTS", "MAPPING_FILE", "API_PROXY"])
def test_an_empty_value_of_an_optional_setting_means_not_set(name: str) -> None:
    assert load_settings({f"POINTILLIST_{name}": " "}) == load_settings({})


@pytest.mark.parametrize("name", ["API_URL", "GRPC_LISTEN", "MAX_AGE", "OUTBOX_URL", "MAX_CONCURRENCY", "LOG_LEVEL"])
def test_an_empty_value_of_any_other_setting_is_a_fault(name: str) -> None:
    assert refusal({f"POINTILLIST_{name}": ""}).startswith(f"POINTILLIST_{name}: ")


# What is refused


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MAX_CONCURRENCY", "0", "0 is not a whole number from 1 to 10000"),
        ("MAX_CONCURRENCY", "10001", "10001 is not a whole number from 1 to 10000"),
        ("MAX_CONCURRENCY", "many", "'many' is not a whole number from 1 to 10000"),
        ("OUTBOX_MAX_EVENTS", "0", "0 is not a whole number from 1 up"),
        ("DUPLICATE_IDS", "9" * 19, "is not a whole number from 1 up"),
        ("DEAD_LETTER_MAX_EVENTS", "1.5", "'1.5' is not a whole number from 1 up"),
        ("REQUEST_TIMEOUT", "10", "'10' is not a duration: expected a number with a unit"),
        ("REQUEST_TIMEOUT", "0s", "0 makes no sense here: expected more than zero"),
        ("MAX_AGE", "40000d", "expected a duration from 0s to 36500d"),
        ("OUTBOX_MAX_BYTES", "10G", "'10G' is not a size: expected bytes"),
        ("OUTBOX_MAX_BYTES", "0", "expected more than zero"),
        ("DISK_FREE_FLOOR", "9999999999TiB", "expected a size from 0 to"),
        ("REFLECTION", "maybe", "'maybe' is neither true nor false"),
        ("HTTP_CLIENT", "curl", "'curl' is not one of 'pyreqwest' or 'httpx2'"),
        ("LOG_LEVEL", "INFO", "'INFO' is not one of 'debug', 'info', 'warning' or 'error'"),
        ("LOG_FORMAT", "xml", "'xml' is not one of 'json' or 'text'"),
        ("RELAY_WORKERS", "-1", "-1 is not a whole number from 0 to 64"),
        ("OUTBOX_URL", "nats://", "is not the URL of NATS servers: expected nats://host:4222"),
        ("OUTBOX_URL", "nats://a:4222,,b", "is not the URL of NATS servers"),
        ("OUTBOX_URL", "nats://a:0", "is not the URL of NATS servers"),
        ("OUTBOX_URL", "nats://a:4222/path", "is not the URL of NATS servers"),
        ("OUTBOX_URL", "tls://a b", "is not the URL of NATS servers"),
        ("NATS_STREAM", "events.here", "cannot begin the name of a stream: expected 1 to 64 letters, digits, - and _"),
        ("NATS_REPLICAS", "6", "6 is not a whole number from 1 to 5"),
        ("NATS_CREDENTIALS_FILE", "/nowhere/at.creds", "cannot be read: No such file or directory"),
        ("RELAY_REPLICAS", "2", "only an outbox on NATS is relayed from by several replicas"),
        ("OUTBOX_URL", "outbox.db", "is not the URL of an outbox file: expected sqlite:///outbox.db"),
        ("OUTBOX_URL", "sqlite://outbox.db", "is not the URL of an outbox file"),
        ("OUTBOX_URL", "sqlite:///", "is not the URL of an outbox file"),
        ("OUTBOX_URL", "sqlite:///:memory:", "is not the URL of an outbox file"),
        ("OUTBOX_URL", "sqlite:///outbox.db?mode=ro", "is not the URL of an outbox file"),
        ("API_URL", "ftp://host/", "is not a URL: expected http:// or https://"),
        ("API_URL", "stream.pointillist.com/event", "is not a URL"),
        ("API_URL", "https:///event", "is not a URL"),
        ("API_URL", "https://host:port/event", "is not a URL"),
        ("API_URL", "https://host:70000/event", "is not a URL"),
        ("API_URL", "https://[::1/event", "is not a URL"),
        ("API_URL", "https://host/a b", "is not a URL"),
        ("API_URL", "https://host/\n", "is not a URL"),
        ("API_URL", "https://host/event#part", "must not hold a fragment"),
        ("API_URL", "https://me:secret@host/", "must not hold a user name or password"),
        ("API_PROXY", "socks5://host:1080", "is not a URL: expected http:// or https://"),
        ("GRPC_LISTEN", ":50051", "':50051' is not an address to listen on: expected HOST:PORT"),
        ("GRPC_LISTEN", "0.0.0.0", "is not an address to listen on"),
        ("METRICS_LISTEN", "::1:9464", "is not an address to listen on"),
        ("METRICS_LISTEN", "[::g]:9464", "is not an address to listen on"),
        ("HEALTH_LISTEN", "host:65536", "is not an address to listen on"),
        ("API_CA_FILE", "/nonexistent/ca.pem", "'/nonexistent/ca.pem' cannot be read: No such file or directory"),
        ("MAPPING_FILE", "/", "'/' is not a regular file"),
        ("MAPPING_FILE", "/nonexistent.toml", "'/nonexistent.toml' cannot be read"),
        ("MAPPING_FILE", "/non\nexistent", "'/non\\nexistent' cannot be read"),
        ("MAPPING_FILE", "/nul\0", "'/nul\\x00' is not a regular file"),
    ],
)
def test_a_bad_value_is_refused_by_name_with_what_would_be_right(name: str, value: str, message: str) -> None:
    refused = refusal({f"POINTILLIST_{name}": value})
    assert refused.startswith(f"POINTILLIST_{name}: ")
    assert message in refused


def test_a_bad_value_in_a_file_is_refused_by_file_and_key(tmp_path: Path) -> None:
    file = write(tmp_path / "p.toml", 'max_concurrency = 0\nlog_level = ["info"]\n')
    assert refusal({"POINTILLIST_CONFIG_FILE": file}).splitlines() == [
        f"{file}: log_level: expected a string, a number, true or false",
        f"{file}: max_concurrency: 0 is not a whole number from 1 to 10000",
    ]


def test_a_bare_number_in_a_file_is_no_duration_either(tmp_path: Path) -> None:
    file = write(tmp_path / "p.toml", "max_age = 7\n")
    assert refusal({"POINTILLIST_CONFIG_FILE": file}).startswith(f"{file}: max_age: '7' is not a duration: expected")


def test_an_unknown_variable_is_refused_with_the_nearest_right_name() -> None:
    assert refusal({"POINTILLIST_MAX_CONCURENCY": "8"}) == (
        "POINTILLIST_MAX_CONCURENCY: there is no such setting; the nearest is POINTILLIST_MAX_CONCURRENCY"
    )


@pytest.mark.parametrize("name", ["POINTILLIST_DESTINATION", "POINTILLIST_PORT", "POINTILLIST_TLS_CIPHERS"])
def test_nothing_but_service_links_is_ignored(name: str) -> None:
    assert refusal({name: TOKEN}).startswith(f"{name}: there is no such setting; the nearest is POINTILLIST_")
    assert TOKEN not in refusal({name: TOKEN})


@pytest.mark.parametrize("key", ["max_concurency", "POINTILLIST_MAX_CONCURRENCY", "MAX_CONCURRENCY"])
def test_an_unknown_key_in_the_file_is_refused_with_the_nearest_right_name(tmp_path: Path, key: str) -> None:
    file = write(tmp_path / "p.toml", f"{key} = 8\n")
    assert refusal({"POINTILLIST_CONFIG_FILE": file}) == (
        f"{file}: '{key}': there is no such setting; the nearest is max_concurrency"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"max_age 7", "is not TOML: Expected '=' after a key in a key/value pair (at line 1, column 9)"),
        (b"\xff", "is not TOML: it is not UTF-8 text"),
    ],
)
def test_a_file_that_is_not_toml_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "p.toml"
    file.write_bytes(content)
    assert refusal({"POINTILLIST_CONFIG_FILE": str(file)}) == f"POINTILLIST_CONFIG_FILE: {file} {message}"


def test_a_config_file_that_is_not_there_is_refused() -> None:
    assert refusal({"POINTILLIST_CONFIG_FILE": "/nonexistent.toml"}) == (
        "POINTILLIST_CONFIG_FILE: /nonexistent.toml cannot be read: No such file or directory"
    )


def test_every_fault_is_told_at_once_one_a_line() -> None:
    refused = refusal(
        {
            "POINTILLIST_MAX_AGE": "x",
            "POINTILLIST_GRPC_LISTEN": "y",
            "POINTILLIST_NONSENSE": "z",
            "POINTILLIST_API_URL": "",
        }
    )
    assert sorted(line.partition(":")[0] for line in refused.splitlines()) == [
        "POINTILLIST_API_URL",
        "POINTILLIST_GRPC_LISTEN",
        "POINTILLIST_MAX_AGE",
        "POINTILLIST_NONSENSE",
    ]


@given(
    name=st.sampled_from(sorted(Settings.model_fields)),
    value=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n\r\0/.:@")),
)
def test_any_value_is_taken_or_refused_in_one_line_of_our_own_words(name: str, value: str) -> None:
    try:
        load_settings({f"POINTILLIST_{name.upper()}": value})
    except SettingsError as error:
        assert re.fullmatch(rf"POINTILLIST_{name.upper()}: .+", str(error))  # noqa: PT017  either outcome is right
        assert "pydantic" not in str(error)  # noqa: PT017
        assert "input_value" not in str(error)  # noqa: PT017


# Addresses and the outbox


@pytest.mark.parametrize("text", ["127.0.0.1:50051", "0.0.0.0:0", "localhost:65535", "[::1]:50051", "[::]:1"])
def test_an_address_is_written_as_it_was_read(text: str) -> None:
    assert str(Listen.parse(text)) == text


@pytest.mark.parametrize(
    ("url", "path"), [("sqlite:///outbox.db", "outbox.db"), ("sqlite:////var/lib/outbox.db", "/var/lib/outbox.db")]
)
def test_three_slashes_are_relative_and_four_absolute(url: str, path: str) -> None:
    assert load_settings({"POINTILLIST_OUTBOX_URL": url}).outbox_path == Path(path)


# What is never shown


def test_secrets_are_shown_nowhere() -> None:
    settings = load_settings(
        {
            "POINTILLIST_API_TOKEN": TOKEN,
            "POINTILLIST_API_PROXY": "http://user:pa55word@proxy.test:3128",
            "POINTILLIST_API_URL": "https://host.test/event?key=qu3ry",
        }
    )
    shown = effective(settings)
    assert shown["api_token"] == "set"
    assert shown["api_proxy"] == "http://redacted@proxy.test:3128"
    assert shown["api_url"] == "https://host.test/event?redacted"
    everything = f"{settings!r} {settings} {shown}"
    assert TOKEN not in everything
    assert "pa55word" not in everything


def test_a_fault_beside_a_secret_does_not_show_it() -> None:
    refused = refusal(
        {
            "POINTILLIST_API_TOKEN": TOKEN,
            "POINTILLIST_API_PROXY": "http://user:pa55word@[proxy",
            "POINTILLIST_API_URL": "https://user:pa55word@host.test",
        }
    )
    assert len(refused.splitlines()) == 2
    assert TOKEN not in refused
    assert "pa55word" not in refused


def test_a_bad_token_given_in_code_is_not_shown_either() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(api_token=SecretStr(f"{TOKEN}\n{TOKEN}"))
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("nats://a", NatsServers(False, (Listen("a", 4222),))),
        ("nats://a:1,b,[::1]:2", NatsServers(False, (Listen("a", 1), Listen("b", 4222), Listen("::1", 2)))),
        ("tls://me:p%40%2Css@a:4222/", NatsServers(True, (Listen("a", 4222),), "me", "p@,ss")),
        ("nats://sesame@a,b", NatsServers(False, (Listen("a", 4222), Listen("b", 4222)), "sesame", None)),
    ],
)
def test_nats_servers_are_read_from_the_outboxs_url(url: str, servers: NatsServers) -> None:
    assert load_settings({"POINTILLIST_OUTBOX_URL": url}).nats_servers == servers


def test_a_login_of_the_outboxs_url_is_shown_nowhere() -> None:
    settings = load_settings({"POINTILLIST_OUTBOX_URL": "nats://me:sesame@a,b:1"})
    assert effective(settings)["outbox_url"] == "nats://redacted@a,b:1"
    assert "sesame" not in repr(settings) + repr(settings.nats_servers)


def test_a_nats_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "cert.pem", "a certificate")
    assert "set both or neither" in refusal({"POINTILLIST_NATS_CERT_FILE": file})
