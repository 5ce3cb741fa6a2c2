"""The proxy on the way to Pointillist: the one that the settings name, or that of the environment."""

import ipaddress
import os
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from service.loopback import is_loopback


def proxy_for(url: str, given: str | None) -> str | None:
    """Return the address of the proxy through which a URL is reached; None where it is reached directly.

    Both HTTP clients are handed the result and look up nothing, so that they agree. Loopback is reached directly,
    whatever is set: through a proxy it would be another machine.

    Args:
        url: an address that can be connected to.
        given: the proxy of POINTILLIST_API_PROXY; None to follow HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host):
        return None
    if given is not None:
        return given
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc.rpartition("@")[2]) or _is_in_excepted_network(host):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_in_excepted_network(host: str) -> bool:
    """Say whether NO_PROXY has a network, such as 10.0.0.0/8, of the host's address; `proxy_bypass` knows none."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:  # a name
        return False
    for entry in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(","):
        try:
            if address in ipaddress.ip_network(entry.strip(), strict=False):
                return True
        except ValueError:  # a name, or a suffix of names
            continue
    return False
