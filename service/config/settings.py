"""Every setting of the service: its source, its meaning and its reason.

Settings come from environment variables (`POINTILLIST_` and the name in capitals) and from a TOML file that
`POINTILLIST_CONFIG_FILE` names (the name in lower case, no prefix). The environment wins. An empty value of a setting
that may be absent means "not set", or "off" for a listener.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from service.config.address import NATS_SCHEMES, Listen, NatsServers
from service.config.fields import (
    Address,
    ApiUrl,
    Duration,
    OutboxUrl,
    PositiveDuration,
    PositiveSize,
    ProxyUrl,
    ReadableFile,
    Size,
    StreamPrefix,
    Switch,
    Token,
    TokenFile,
    whole,
)
from service.config.token import FixedToken, watch_token
from service.config.watched_file import WatchedFile
from service.errors import SettingsError

PREFIX: Final = "POINTILLIST_"
CONFIG_FILE_VARIABLE: Final = "POINTILLIST_CONFIG_FILE"
# Kubernetes and Docker links announce a service called pointillist-destination to every container beside it.
SERVICE_LINK_PREFIX: Final = "POINTILLIST_DESTINATION_"


class Settings(BaseModel):
    """All settings, checked; durations are seconds, sizes are bytes.

    Made by `load_settings`, or directly with keyword values (tests do so): the process environment is never looked at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, use_attribute_docstrings=True)

    api_token: Token | None = Field(default=None, repr=False)
    """Pointillist's token, sent in the header `apiToken`. `serve` needs it, or a file with it."""

    api_token_file: TokenFile | None = None
    """A file that holds the token. It is reread when it changes, so that a token can be renewed without a restart."""

    api_url: ApiUrl = "https://stream.pointillist.com/event"
    """The address for records; an `http` or `https` URL. The sandbox has another one than Pointillist."""

    api_ca_file: ReadableFile | None = None
    """A PEM file of certificate authorities to trust besides the system's, for a proxy that inspects TLS."""

    api_proxy: ProxyUrl | None = Field(default=None, repr=False)
    """An `http` or `https` proxy on the way to Pointillist. Without it, `HTTPS_PROXY` and `NO_PROXY` are
    respected. Loopback is reached without one."""

    http_client: Literal["pyreqwest", "httpx2"] = "pyreqwest"
    """Which HTTP client sends records: `pyreqwest` is the fast one, `httpx2` the one that runs everywhere."""

    request_timeout: PositiveDuration = 10.0
    """Seconds after which a POST without an answer counts as failed, and is tried again."""

    max_concurrency: Annotated[int, whole(1, 10_000)] = 256
    """The most POSTs in flight at once. The relay finds the best number below it by itself."""

    max_age: PositiveDuration = 7 * 86400.0
    """Seconds after its acceptance, or replay, until which an event is retried; then it becomes a dead letter."""

    retry_max_delay: PositiveDuration = 300.0
    """The longest wait between two attempts to send one event, in seconds; it also caps `Retry-After`."""

    grpc_listen: Address = Listen("127.0.0.1", 50051)
    """The address of the gRPC port. On loopback by default, as it is in plain text."""

    metrics_listen: Address | None = Listen("127.0.0.1", 9464)
    """The address at which Prometheus reads `/metrics`; empty turns it off."""

    health_listen: Address | None = None
    """The address of a port that serves only health, for probes that cannot use the gRPC port; empty: none."""

    reflection: Switch = True
    """Serve gRPC reflection, so that `grpcurl` needs no proto files; with a callers file, to
    callers that it names."""

    tls_cert_file: ReadableFile | None = None
    """A PEM file with the server's certificate and those between it and its authority; it turns TLS on. It, the key and
    the client CA are read again when they change."""

    tls_key_file: ReadableFile | None = None
    """A PEM file with the certificate's private key."""

    tls_client_ca_file: ReadableFile | None = None
    """A PEM file of authorities; callers must then show a certificate that one of them has signed."""

    callers_file: ReadableFile | None = None
    """A TOML file that names who may call: the SHA-256 of each caller's token, its methods and its rate. It is read
    again when it changes. Without it, whoever reaches the port may call."""

    outbox_url: OutboxUrl = Field(default="sqlite:///outbox.db", repr=False)
    """The store of accepted events: `sqlite:///` and a path, so three slashes are relative and four absolute; or
    `nats://` (`tls://`) and the hosts of a NATS system with JetStream, which several replicas share."""

    nats_credentials_file: ReadableFile | None = None
    """A `.creds` file, with which NATS knows us; without it a user and password in the URL may stand."""

    nats_ca_file: ReadableFile | None = None
    """A PEM file of certificate authorities that NATS' certificate is checked with, instead of the system's."""

    nats_cert_file: ReadableFile | None = None
    """A PEM file with the certificate that we show to NATS, where it asks for one."""

    nats_key_file: ReadableFile | None = None
    """A PEM file with that certificate's private key."""

    nats_stream: StreamPrefix = "POINTILLIST"
    """The prefix of the streams' names, so that two set-ups can share a NATS system."""

    nats_replicas: Annotated[int, whole(1, 5)] = 1
    """On how many servers of NATS each stream is kept; with 3, one of them may fail."""

    outbox_max_bytes: PositiveSize = 10 * 1024**3
    """The largest size of the outbox, in bytes. At it, callers get UNAVAILABLE; nothing is dropped."""

    outbox_max_events: Annotated[int, whole(1)] | None = None
    """The largest number of pending events; without it only bytes count."""

    disk_free_floor: Size = 512 * 1024**2
    """Bytes of the disk that stay free; below that no new event is accepted."""

    duplicate_window: PositiveDuration = 86400.0
    """Seconds for which a message id is remembered, so that a second event with it is not sent."""

    duplicate_ids: Annotated[int, whole(1)] = 10_000_000
    """The largest number of remembered message ids; the oldest are forgotten first."""

    max_calls: Annotated[int, whole(1, 100_000)] = 2000
    """The largest number of calls in progress, over all connections; above it callers get UNAVAILABLE. Each call takes
    memory, and more of them than two cores can serve only wait for each other."""

    dead_letter_max_events: Annotated[int, whole(1)] = 1_000_000
    """The largest number of dead letters. At it the relay pauses rather than lose one."""

    relay_replicas: Annotated[int, whole(1, 1000)] = 1
    """The number of replicas that relay from one outbox on NATS; each allows itself its share of `max_concurrency`."""

    relay_workers: Annotated[int, whole(0, 64)] = 0
    """The number of processes that map and send records besides the server, to use more cores; with 0 the server does
    so itself. They share `POINTILLIST_MAX_CONCURRENCY`."""

    mapping_file: ReadableFile | None = None
    """A TOML file that replaces the built-in mapping of events to records."""

    shutdown_delay: Duration = 0.0
    """Seconds for which the server goes on serving after SIGTERM, while load balancers learn that it leaves."""

    shutdown_grace: Duration = 15.0
    """Seconds that calls and POSTs in flight have to end, before they are cut off."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least serious level that is logged."""

    log_format: Literal["json", "text"] | None = None
    """`json` for machines or `text` for people; without it, `text` on a terminal and `json` elsewhere."""

    @model_validator(mode="after")
    def _one_token(self) -> Self:
        if self.api_token is not None and self.api_token_file is not None:
            raise ValueError("POINTILLIST_API_TOKEN and POINTILLIST_API_TOKEN_FILE are both set: set one of them")
        return self

    @model_validator(mode="after")
    def _whole_tls(self) -> Self:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("POINTILLIST_TLS_CERT_FILE and POINTILLIST_TLS_KEY_FILE: one is set: set both or neither")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError(
                "POINTILLIST_TLS_CLIENT_CA_FILE: says nothing without POINTILLIST_TLS_CERT_FILE and _TLS_KEY_FILE"
            )
        return self

    @model_validator(mode="after")
    def _whole_nats(self) -> Self:
        if (self.nats_cert_file is None) != (self.nats_key_file is None):
            raise ValueError(
                "POINTILLIST_NATS_CERT_FILE and POINTILLIST_NATS_KEY_FILE: one is set: set both or neither"
            )
        if self.relay_replicas > 1 and self.nats_servers is None:
            raise ValueError(
                "POINTILLIST_RELAY_REPLICAS: only an outbox on NATS is relayed from by several replicas: set"
                " POINTILLIST_OUTBOX_URL to nats://host:4222, or leave this at 1"
            )
        return self

    @property
    def nats_servers(self) -> NatsServers | None:
        """The servers that `outbox_url` names; None where the outbox is a file."""
        return NatsServers.parse(self.outbox_url) if self.outbox_url.startswith(NATS_SCHEMES) else None

    @property
    def outbox_path(self) -> Path:
        """The file that `outbox_url` names; asked where it names one."""
        return Path(self.outbox_url.removeprefix("sqlite:///"))

    def require_token(self) -> FixedToken | WatchedFile[str]:
        """Return the token, as it is or as its file has it.

        Raises:
            SettingsError: when neither setting gives one, or its file is gone by now.
        """
        if self.api_token_file is not None:
            return watch_token(self.api_token_file)
        if self.api_token is not None:
            return FixedToken(self.api_token.get_secret_value())
        raise SettingsError(
            "no token for Pointillist: set POINTILLIST_API_TOKEN, or POINTILLIST_API_TOKEN_FILE to a file that holds it"
        )


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Read the settings from an environment and from the TOML file that it may name.

    Args:
        environ: all variables, such as `os.environ`; the ones that do not begin with `POINTILLIST_` are not looked at.

    Raises:
        SettingsError: with one line for each fault, all faults at once.
    """
    faults: list[str] = []
    values: dict[str, str] = {}
    places: dict[str, str] = {}
    config_file = environ.get(CONFIG_FILE_VARIABLE, "").strip()
    if config_file:
        _read_config_file(Path(config_file), values, places, faults)
    _read_environment(environ, values, places, faults)
    given = {name: None if _means_not_set(name, text) else text for name, text in values.items()}
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        faults += [_fault(details, given, places) for details in error.errors(include_url=False)]
    if faults:
        raise SettingsError("\n".join(faults))
    return settings


def effective(settings: Settings) -> dict[str, str]:
    """Write every setting as a person would, for the log line at start; nothing secret is in it.

    The token is "set" or "not set"; user names, passwords and queries in URLs are replaced.
    """
    shown: dict[str, str] = {}
    for name, value in settings.model_dump(mode="json").items():
        if value is None:
            shown[name] = "off" if name.endswith("_listen") else "not set"
        else:
            shown[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return shown


def _read_environment(
    environ: Mapping[str, str], values: dict[str, str], places: dict[str, str], faults: list[str]
) -> None:
    variables = {PREFIX + name.upper(): name for name in Settings.model_fields}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable.startswith(SERVICE_LINK_PREFIX):
            continue
        if variable in variables:
            values[variables[variable]] = text
            places[variables[variable]] = variable
        elif variable != CONFIG_FILE_VARIABLE:
            nearest = _nearest(variable, [*variables, CONFIG_FILE_VARIABLE])
            faults.append(f"{variable}: there is no such setting; the nearest is {nearest}")


def _read_config_file(path: Path, values: dict[str, str], places: dict[str, str], faults: list[str]) -> None:
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        faults.append(f"{CONFIG_FILE_VARIABLE}: {path} cannot be read: {error.strerror}")
        return
    except UnicodeDecodeError:
        faults.append(f"{CONFIG_FILE_VARIABLE}: {path} is not TOML: it is not UTF-8 text")
        return
    except tomllib.TOMLDecodeError as error:
        faults.append(f"{CONFIG_FILE_VARIABLE}: {path} is not TOML: {error}")
        return
    for key, value in content.items():
        place = f"{path}: {key}"
        if key not in Settings.model_fields:
            nearest = _nearest(key.lower().removeprefix(PREFIX.lower()), Settings.model_fields)
            faults.append(f"{path}: {key!r}: there is no such setting; the nearest is {nearest}")
        elif isinstance(value, str | int | float):
            # One reader for both sources: a value is valid here if it is valid in the environment, and vice versa.
            values[key] = str(value).lower() if isinstance(value, bool) else str(value)
            places[key] = place
        else:
            faults.append(f"{place}: expected a string, a number, true or false")


def _nearest(name: str, candidates: Iterable[str]) -> str:
    return difflib.get_close_matches(name, candidates, n=1, cutoff=0.0)[0]


def _means_not_set(name: str, text: str) -> bool:
    """Tell whether the text is empty and the setting may be absent; for any other, empty is a fault."""
    return not text.strip() and type(None) in get_args(Settings.model_fields[name].annotation)


def _fault(details: ErrorDetails, given: Mapping[str, Any], places: Mapping[str, str]) -> str:
    """Write one of pydantic's findings as one line in our words."""
    context = details.get("ctx", {})
    reason = str(context.get("error", details["msg"]))
    if not details["loc"]:
        return reason
    name = str(details["loc"][0])
    if details["type"] == "literal_error":
        reason = f"{given[name]!r} is not one of {context['expected']}"
    return f"{places[name]}: {reason}"
