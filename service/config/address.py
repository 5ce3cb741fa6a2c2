"""Addresses: to listen on, to call, and of NATS servers."""

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import unquote

NATS_SCHEMES: Final = ("nats://", "tls://")
NATS_PORT: Final = 4222  # the default port of NATS
URL_CHARACTERS: Final = re.compile(r"[!-~]+")

_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  nothing is bound here
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_.])?")


@dataclass(frozen=True, slots=True)
class Listen:
    """An address to listen on; port 0 lets the system choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        """Write `HOST:PORT`, with brackets around an IPv6 address."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `HOST:PORT` or `[IPv6]:PORT`, the port from 0 to 65535.

        Raises:
            ValueError: the message quotes the text and names valid forms.
        """
        host, _, port = text.strip().rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            good_host = _is_ipv6(host)
        else:
            good_host = _HOST_NAME.fullmatch(host) is not None
        if not good_host or re.fullmatch(r"[0-9]{1,5}", port) is None or int(port) > 65535:
            raise ValueError(
                f"{text!r} is not an address to listen on: expected HOST:PORT with a port from 0 to 65535, "
                "such as 127.0.0.1:50051, 0.0.0.0:50051 or [::1]:50051"
            )
        return cls(host, int(port))


def called_at(listen: Listen) -> Listen:
    """Return the address at which this machine reaches a listener: loopback for one that listens on every address."""
    return Listen(_EVERY_ADDRESS.get(listen.host, listen.host), listen.port)


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class NatsServers:
    """The servers of one NATS system, and how it knows us."""

    is_tls: bool
    hosts: tuple[Listen, ...]
    user: str | None = field(default=None, repr=False)
    """A user name or, where there is no password, a token."""
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `nats://host:4222`, or `tls://`, with several hosts after commas and `user:password@` before them.

        Raises:
            ValueError: the message names valid forms; the text is not repeated, as it may hold a password.
        """
        scheme, _, rest = text.partition("://")
        login, _, hosts = rest.removesuffix("/").rpartition("@")
        user, colon, password = login.partition(":")
        try:
            found = tuple(_nats_host(host) for host in hosts.split(",") if URL_CHARACTERS.fullmatch(text))
        except ValueError:
            found = ()
        if not found:
            raise ValueError(
                "is not the URL of NATS servers: expected nats://host:4222, or tls:// where they have TLS; further"
                " hosts follow after a comma, as in nats://a:4222,b:4222, and user:password@ may stand before the first"
            )
        return cls(scheme == "tls", found, unquote(user) or None, unquote(password) if colon else None)


def _nats_host(text: str) -> Listen:
    """Read HOST or HOST:PORT."""
    has_port = ":" in text.rpartition("]")[2]
    host = Listen.parse(text if has_port else f"{text}:{NATS_PORT}")
    if host.port == 0:
        raise ValueError(text)
    return host
