"""Making a message_id for an event that came without one, and the digest of one."""

import hashlib
import os
import time
import uuid

DIGEST_SIZE = 16  # bytes


def new_message_id() -> str:
    """A UUID of version 7 as RFC 9562 section 5.7 lays it out: 48 bits of Unix milliseconds, then random bits."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10))
    return _uuid((milliseconds & (1 << 48) - 1) << 80 | random, version=7)


def derived_message_id(place: str, event: bytes) -> str:
    """A UUID of version 8 (RFC 9562 section 5.8) that is the same whenever the same event stands in the same place.

    So a file that is sent again gives duplicates and not second events, whether or not its events had ids.
    """
    hashed = hashlib.blake2b(event, key=place.encode()[:64], digest_size=DIGEST_SIZE).digest()
    return _uuid(int.from_bytes(hashed), version=8)


def digest(message_id: str) -> bytes:
    """Return the 16 bytes by which a store finds an event: the same size whatever callers send."""
    return hashlib.blake2b(message_id.encode(), digest_size=DIGEST_SIZE).digest()


def _uuid(value: int, *, version: int) -> str:
    """A UUID of these bits but for its version and variant; uuid.UUID sets none above 5 before Python 3.14."""
    value = value & ~(0xF << 76) | version << 76
    return str(uuid.UUID(int=value & ~(3 << 62) | 2 << 62))
