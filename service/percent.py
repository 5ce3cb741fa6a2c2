"""Any text as a header's value: `%` and every byte of its UTF-8 outside 0x21 to 0x7E become %XX.

`Idempotency-Key` and `Nats-Msg-Id` carry it, so that both systems know an event by the same name.
"""

from typing import Final
from urllib.parse import quote, unquote

_VISIBLE: Final = "".join(map(chr, range(0x21, 0x7F))).replace("%", "")


def encode(text: str) -> str:
    """Write a text with visible ASCII alone."""
    if text.isascii() and text.isprintable() and " " not in text and "%" not in text:
        return text
    return quote(text, safe=_VISIBLE)


def decode(value: str) -> str:
    """Decode a text that `encode` wrote."""
    return unquote(value) if "%" in value else value
