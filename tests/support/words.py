"""Count question words in the docstrings and comments of service/: `python -m tests.support.words [-v]`."""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import PROJECT

SERVICE = PROJECT / "service"

_QUESTION = re.compile(r"(What|How|Whether|Where|Why|Who)\b")
_WHAT = re.compile(r"\bwhat\b", re.IGNORECASE)
_WORD = re.compile(r"[A-Za-z][A-Za-z'_]*")


@dataclass(frozen=True)
class Words:
    """The prose of one module: its docstrings, with their lines, and its comments."""

    path: Path
    docstrings: tuple[tuple[int, str], ...]
    comments: tuple[tuple[int, str], ...]

    @property
    def questions(self) -> list[tuple[int, str]]:
        """Docstrings that begin with What, How, Whether, Where, Why or Who: line and first line of the text."""
        return [(line, text.splitlines()[0]) for line, text in self.docstrings if _QUESTION.match(text)]

    @property
    def whats(self) -> list[tuple[int, str]]:
        """Lines of prose with "what" in them, one entry per occurrence: line of the docstring or comment, and text."""
        return [
            (line, row.strip())
            for line, text in (*self.docstrings, *self.comments)
            for row in text.splitlines()
            for _ in _WHAT.findall(row)
        ]

    @property
    def count(self) -> int:
        """Number of words of prose."""
        return sum(len(_WORD.findall(text)) for _, text in (*self.docstrings, *self.comments))


def read(path: Path) -> Words:
    """Read the prose of a module: docstrings of module, classes, functions and fields, and comments."""
    source = path.read_text()
    comments = tuple(
        (token.start[0], token.string.lstrip("# "))
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    )
    return Words(path, tuple(_docstrings(ast.parse(source))), comments)


def read_all(folder: Path = SERVICE) -> list[Words]:
    """Read every module below a folder, sorted by path."""
    return [read(path) for path in sorted(folder.rglob("*.py"))]


def per_thousand(modules: list[Words]) -> float:
    """Occurrences of "what" per 1,000 words of prose."""
    return 1000 * sum(len(module.whats) for module in modules) / sum(module.count for module in modules)


def _docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield each string that stands as a statement, be it a docstring or below a field or a constant."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))) if text.strip():
                yield node.lineno, text.strip()


def report(modules: list[Words], *, verbose: bool) -> Iterator[str]:
    """Yield the lines to print: the totals and, if verbose, the counts and the places of each module before them."""
    for module in modules if verbose else ():
        if module.questions or module.whats:
            yield f"{module.path}: {len(module.questions)} docstrings, {per_thousand([module]):.1f} per 1,000 words"
            yield from (f"  {line}: {text}" for line, text in sorted({*module.questions, *module.whats}))
    docstrings = sum(len(module.docstrings) for module in modules)
    questions = sum(len(module.questions) for module in modules)
    yield f"docstrings that begin with What, How, Whether, Where, Why or Who: {questions} of {docstrings}"
    words = sum(module.count for module in modules)
    yield f'"what" per 1,000 words of docstrings and comments: {per_thousand(modules):.1f} ({words} words)'


def main() -> None:
    """Print the totals and, with -v, the counts and the places of each module."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.words", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=SERVICE)
    parser.add_argument("-v", "--verbose", action="store_true", help="list each module and each place")
    options = parser.parse_args()
    sys.stdout.writelines(f"{line}\n" for line in report(read_all(options.folder), verbose=options.verbose))


if __name__ == "__main__":
    main()
