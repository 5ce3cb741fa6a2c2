"""Takes the API token out of texts that a server had a hand in, in whichever form it repeats the token."""

import base64
import functools
import html
import re

REDACTED = "[token]"
LEAST_BASE64 = 8  # characters; fewer would be found in other texts


def without_token(token: str, text: str) -> str:
    """Return the text without the token: as it is, or escaped as in JSON, HTML or a URL, or in Base64.

    Args:
        token: the token; "" for none.
        text: goes into logs and dead letters.
    """
    return _pattern(token).sub(REDACTED, text) if token and text else text


@functools.lru_cache(maxsize=4)
def _pattern(token: str) -> re.Pattern[str]:
    by_character = "".join(f"(?:{'|'.join(_forms(character))})" for character in token)
    return re.compile("|".join([by_character, *map(re.escape, _in_base64(token.encode()))]))


def _forms(character: str) -> list[str]:
    """Return regular expressions of the forms of one character."""
    code = ord(character)
    named = html.escape(character)
    return [
        rf"\\?{re.escape(character)}",  # JSON may escape a quote, a solidus and a backslash so
        *([re.escape(named)] if named != character else ()),
        rf"(?i:\\u{code:04x}|\\x{code:02x}|&\#x0*{code:x};)",
        rf"&\#0*{code};",
        "".join(rf"(?i:%{byte:02x})" for byte in character.encode()),
    ]


def _in_base64(token: bytes) -> list[str]:
    """Return its Base64, also as the middle of a longer text: there are three, and two alphabets."""
    found = []
    for before in range(3):
        whole = base64.b64encode(bytes(before) + token).decode().rstrip("=")
        # The first and the last character may hold bits of what is beside the token.
        first, last = -(-before * 8 // 6), (before + len(token)) * 8 // 6
        found += [whole[first:last], whole[first:last].translate(str.maketrans("+/", "-_"))]
    return sorted({form for form in found if len(form) >= LEAST_BASE64}, key=len, reverse=True)
