"""What a row finds: ours beside its ceiling or rival, round by round, and the ratio of the two."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from rich.table import Table

Compare = Literal["ratio", "inverse", "difference", "alone"]


class Sample(NamedTuple):
    """One side of one round."""

    value: float
    cpu: float | None = None
    """Microseconds of CPU an event, of the process under test and of all its threads."""
    memory: float | None = None
    """The most resident memory of the process under test so far, in MiB."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    row: str
    what: str
    unit: str
    ours: Sequence[Sample]
    theirs: Sequence[Sample] = ()
    rival: str = ""
    """What `theirs` are of."""
    bound: str = ""
    """A ceiling, or a bound that held when it was measured (see README.md); printed, never asserted."""
    compare: Compare = "ratio"
    """How ours are compared with theirs: ours / theirs, theirs / ours, ours - theirs, or not at all."""

    def compared(self) -> list[float]:
        """The comparison of each round; rounds are compared with themselves, so that noise that lasts cancels."""
        if self.compare == "alone":
            return [sample.value for sample in self.ours]
        pairs = zip(self.ours, self.theirs, strict=True)
        match self.compare:
            case "ratio":
                return [ours.value / theirs.value for ours, theirs in pairs]
            case "inverse":
                return [theirs.value / ours.value for ours, theirs in pairs]
            case "difference":
                return [ours.value - theirs.value for ours, theirs in pairs]

    def summary(self) -> str:
        """Median and extremes of the comparison, for people."""
        compared = self.compared()
        sign = "x" if self.compare in {"ratio", "inverse"} else f" {self.unit}"
        spread = f" ({_short(min(compared))} to {_short(max(compared))})" if len(compared) > 1 else ""
        return f"{_short(statistics.median(compared))}{sign}{spread}"

    def as_json(self) -> dict[str, Any]:
        """All of it, for machines."""
        compared = self.compared()
        return {
            **asdict(self),
            "ours": [sample._asdict() for sample in self.ours],
            "theirs": [sample._asdict() for sample in self.theirs],
            "compared": compared,
            "median": statistics.median(compared),
            "least": min(compared),
            "most": max(compared),
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many per cent of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def table(figures: Sequence[Figure]) -> Table:
    """The figures as a table for a terminal."""
    shown = Table(title="ours beside the ceiling or the rival: medians; ratios with their extremes")
    for name in ("row", "figure", "ours", "theirs", "compared", "bound", "CPU µs/event", "peak MiB"):
        shown.add_column(name, justify="left" if name in {"row", "figure"} else "right", overflow="fold")
    for figure in figures:
        theirs = f"{_median(figure.theirs)} {figure.unit}\n[dim]{figure.rival}[/dim]" if figure.theirs else ""
        shown.add_row(
            figure.row,
            figure.what,
            f"{_median(figure.ours)} {figure.unit}",
            theirs,
            figure.summary(),
            figure.bound,
            _both([sample.cpu for sample in figure.ours], [sample.cpu for sample in figure.theirs]),
            _both([sample.memory for sample in figure.ours], [sample.memory for sample in figure.theirs]),
        )
    return shown


def _median(samples: Sequence[Sample]) -> str:
    return _short(statistics.median(sample.value for sample in samples))


def _both(ours: Sequence[float | None], theirs: Sequence[float | None]) -> str:
    sides = ([value for value in side if value is not None] for side in (ours, theirs))
    return " / ".join(_short(statistics.median(side)) for side in sides if side)


def _short(number: float) -> str:
    """Three digits that mean something."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"
