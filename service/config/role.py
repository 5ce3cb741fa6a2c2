"""The role of a replica: to accept events, to relay them, or both."""

from enum import StrEnum


class Role(StrEnum):
    """The value of `serve --role`."""

    ALL = "all"
    ACCEPT = "accept"
    RELAY = "relay"

    @property
    def accepts(self) -> bool:
        """True if it accepts events."""
        return self is not Role.RELAY

    @property
    def relays(self) -> bool:
        """True if it delivers events to Pointillist."""
        return self is not Role.ACCEPT
