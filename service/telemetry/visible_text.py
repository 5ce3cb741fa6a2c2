"""Text that others wrote, so that a terminal shows it instead of obeying it.

A control character can move the cursor, colour what follows or begin a forged line; a bidirectional control can show a
text in another order than it has. https://www.unicode.org/reports/tr36/#Bidirectional_Text_Spoofing
"""

import re
from typing import Final

_CONTROLS: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0, DEL and C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional marks, embeddings, overrides and isolates
    "\u2028\u2029"  # line and paragraph separators
    "\ud800-\udfff]"  # half of a pair, which no terminal can show
)


def visible(text: str) -> str:
    r"""Return the text with escapes, such as `\n` and `\u202e`, in place of controls; any other text stays as it is."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def visible_lines(text: str) -> str:
    """Return the text with its line feeds, and with escapes in place of all other controls."""
    return "\n".join(map(visible, text.split("\n")))


def visible_json(text: str) -> str:
    """Return the same JSON with escapes in place of the controls that JSON allows as they are.

    Args:
        text: JSON whose only line feeds are those between values.
    """
    return "\n".join(_CONTROLS.sub(_json_escape, line) for line in text.split("\n"))


def _json_escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
