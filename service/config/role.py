"""What a replica does of the two things: taking events in, and relaying them."""

from enum import StrEnum


class Role(StrEnum):
    """What `serve --role` says."""

    ALL = "all"
    ACCEPT = "accept"
    RELAY = "relay"

    @property
    def accepts(self) -> bool:
        """Whether it takes events in."""
        return self is not Role.RELAY

    @property
    def relays(self) -> bool:
        """Whether it sends events to Pointillist."""
        return self is not Role.ACCEPT
