"""The choice of the proxy on the way to Pointillist."""

import pytest

from service.pointillist.proxy import proxy_for

PROXY = "http://proxy.test:3128"
OTHER = "http://other.test:3128"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("url", ["https://pointillist.test/event", "http://pointillist.test/event"])
def test_a_proxy_that_is_given_comes_before_those_of_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", OTHER)
    monkeypatch.setenv("https_proxy", OTHER)
    monkeypatch.setenv("no_proxy", "*")

    assert proxy_for(url, PROXY) == PROXY


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("http_proxy", "http://pointillist.test/event"),
        ("HTTP_PROXY", "http://pointillist.test/event"),
        ("https_proxy", "https://pointillist.test/event"),
        ("HTTPS_PROXY", "https://pointillist.test/event"),
        ("ALL_PROXY", "https://pointillist.test/event"),
    ],
)
def test_the_environment_is_followed_by_the_scheme_of_the_address(
    name: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert proxy_for(url, None) is None
    monkeypatch.setenv(name, PROXY.removeprefix("http://"))

    assert proxy_for(url, None) == PROXY


@pytest.mark.parametrize("given", [PROXY, None])
@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "[::1]", "localhost", "LOCALHOST."])
def test_loopback_is_reached_without_a_proxy(host: str, given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", PROXY)

    assert proxy_for(f"http://{host}:8080/event", given) is None


@pytest.mark.parametrize(
    ("no_proxy", "host", "is_direct"),
    [
        ("pointillist.test", "stream.pointillist.test", True),
        ("pointillist.test", "pointillist.other", False),
        ("*", "pointillist.test", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("localhost, 10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("fd00::/8", "[fd00::1]", True),
        ("10.0.0.0/8", "[fd00::1]", False),
    ],
)
def test_an_address_that_no_proxy_names_is_reached_without_one(
    no_proxy: str, host: str, is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", PROXY)
    monkeypatch.setenv("no_proxy", no_proxy)

    assert (proxy_for(f"https://{host}:443/event", None) is None) == is_direct
