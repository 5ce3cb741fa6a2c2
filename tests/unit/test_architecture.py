"""docs/architecture.md, and the links of every page, beside the tree that they describe."""

import re
from pathlib import Path

import pytest

from tests.support.paths import PROJECT

SERVICE = PROJECT / "service"
ARCHITECTURE = PROJECT / "docs" / "architecture.md"
LINES_TOLERANCE = 0.2  # of the lines that the page states

ROW = re.compile(r"\| \[(service/[\w/]*)\]\(([^)]+)\) \| (\d+) \| (\d+) \| .+ \|")
LINK = re.compile(r"\]\(([^)\s]+)\)")

PAGES = sorted(
    page.relative_to(PROJECT).as_posix()
    for pattern in ("*.md", "docs/*.md", "docs/examples/*/README.md", "benchmarks/*.md", "generated/*.md")
    for page in PROJECT.glob(pattern)
)


def stated() -> dict[str, tuple[int, int]]:
    """The files and lines of each package, as the page states them."""
    rows = ROW.finditer(ARCHITECTURE.read_text())
    return {package: (int(files), int(lines)) for package, _, files, lines in (row.groups() for row in rows)}


def modules(package: str) -> list[Path]:
    return [path for path in (PROJECT / package).glob("*.py") if path.name != "__init__.py"]


def test_the_page_names_every_package() -> None:
    packages = {f"{path.parent.relative_to(PROJECT).as_posix()}/" for path in SERVICE.rglob("__init__.py")}

    assert set(stated()) == packages


def test_the_page_counts_the_modules_of_each_package() -> None:
    assert {package: files for package, (files, _) in stated().items()} == {
        package: len(modules(package)) for package in stated()
    }


def test_the_page_states_about_as_many_lines_as_each_package_has() -> None:
    for package, (_, lines) in stated().items():
        counted = sum(len(path.read_text().splitlines()) for path in modules(package))

        assert counted == pytest.approx(lines, rel=LINES_TOLERANCE), package


def test_the_row_of_a_package_leads_to_it() -> None:
    for package, target, *_ in (row.groups() for row in ROW.finditer(ARCHITECTURE.read_text())):
        assert (ARCHITECTURE.parent / target).resolve() == (PROJECT / package).resolve()


@pytest.mark.parametrize("page", PAGES)
def test_each_relative_link_leads_somewhere(page: str) -> None:
    path = PROJECT / page
    targets = [target for target in LINK.findall(path.read_text()) if not re.match(r"[a-z]+:", target)]

    broken = [target for target in targets if not _exists(path, target)]

    assert not broken


def _exists(page: Path, target: str) -> bool:
    """True if the file of a link exists and, where the link names a heading of a page, the heading does."""
    name, _, heading = target.partition("#")
    file = page.parent / name if name else page
    return file.exists() and (not heading or heading in _anchors(file))


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
