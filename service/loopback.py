"""Loopback: the hosts that are reachable from this machine only."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Return True if a host, a name or an address without brackets, is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host.lower().removesuffix(".") == "localhost"
