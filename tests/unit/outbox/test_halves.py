"""Each user of the outbox is given only its half."""

import ast
from collections.abc import Iterator
from pathlib import Path

from service.outbox import base

SERVICE = Path(base.__file__).parents[1]
HALVES = {"Sink", "Queue", "DeadLetters"}
JOINED = {"OpenOutbox", "SqliteOutbox", "JetStreamOutbox"}


def imported(path: Path) -> Iterator[str]:
    """The names that a module imports from the outbox."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("service.outbox"):
            yield from (alias.name for alias in node.names)


def users() -> dict[str, set[str]]:
    """The modules outside the outbox, and those of its names that they import."""
    modules = (path for path in SERVICE.rglob("*.py") if SERVICE / "outbox" not in path.parents)
    return {path.relative_to(SERVICE).as_posix(): set(imported(path)) for path in modules}


def test_no_name_that_joins_the_halves_is_imported_outside_the_outbox_but_by_the_composition_root() -> None:
    assert {name for name, names in users().items() if names & JOINED} == {"app.py"}


def test_no_module_is_given_two_halves() -> None:
    assert {name: names & HALVES for name, names in users().items() if len(names & HALVES) > 1} == {}
