"""A page's recipes: a command in a block of sh, and in the next block what it says."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_RECIPE = re.compile(r"```sh\n(?P<command>.*?)```\n\n```\n(?P<expected>.*?)```\n", re.DOTALL)
ANY_LINES = "…"  # alone on a line: any lines; within one: anything


class Recipe(NamedTuple):
    """One command, and what it says."""

    command: str
    expected: str

    def is_met_by(self, said: str) -> bool:
        """Whether it said what the page says, whatever the spaces within its lines."""
        lines = []
        for line in self.expected.splitlines():
            words = r"[ \t]+".join(re.escape(word).replace("…", ".*?") for word in line.split())
            lines.append(r"(?:.*\n)*?" if line == ANY_LINES else rf"[ \t]*{words}[ \t]*\n")
        return re.match("".join(lines), said) is not None


def recipes_of(page: Path) -> Iterator[Recipe]:
    """Every recipe of a page, in order.

    Raises:
        AssertionError: a command stands without what it says.
    """
    text = page.read_text()
    recipes = [Recipe(found["command"], found["expected"]) for found in _RECIPE.finditer(text)]
    assert len(recipes) == text.count("```sh")
    return iter(recipes)
