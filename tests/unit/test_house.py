"""The pure packages open no file, but for the one module that reads mapping files."""

import ast
from pathlib import Path

import pytest

from tests.support.paths import PROJECT

SERVICE = PROJECT / "service"
PURE = [
    *sorted((SERVICE / "events").glob("*.py")),
    *sorted((SERVICE / "mapping").glob("*.py")),
    *(SERVICE / "relay" / f"{name}.py" for name in ("concurrency", "flow", "outage", "repeat_rate", "retry")),
]
OPENERS = {"open", "read_bytes", "read_text", "write_bytes", "write_text", "unlink", "mkdir", "as_file"}


def opened(path: Path) -> set[str]:
    """The calls in a module that open, make or remove files."""
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = {call.id if isinstance(call, ast.Name) else getattr(call, "attr", "") for call in calls}
    return names & OPENERS


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.relative_to(SERVICE).as_posix())
def test_a_pure_module_opens_no_file(path: Path) -> None:
    assert opened(path) == ({"read_text"} if path.name == "mapping_file.py" else set())


def test_there_are_at_most_nine_modules_beside_the_packages_and_sixteen_in_each() -> None:
    counts = {folder: len(list(folder.glob("*.py"))) for folder in [SERVICE, *SERVICE.rglob("*/")] if folder.is_dir()}
    assert counts.pop(SERVICE) <= 9
    assert max(counts.values()) <= 16
