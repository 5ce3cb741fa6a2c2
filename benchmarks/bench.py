"""How near the service comes to its ceilings.

    python -m benchmarks [ROW ...] [--rounds N] [--json FILE] [--picture FILE] [--short] [--folder FOLDER]

Rows run one after the other; within a row, ours and its ceiling or rival take turns, round by round. Nothing is
asserted: bounds stand beside the figures.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import gettempdir

if __package__ in {None, ""}:  # run as a file: the package is found from the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console

from benchmarks import h2load
from benchmarks.figures import Figure, table
from benchmarks.picture import draw
from benchmarks.plan import Plan
from benchmarks.rows_disk import backlog, growth, window
from benchmarks.rows_everything import ROW as EVERYTHING
from benchmarks.rows_everything import everything
from benchmarks.rows_in import batch, ok_latency, unary
from benchmarks.rows_mapping import mapping
from benchmarks.rows_nats import nats_batch, nats_drain, nats_sync, nats_unary
from benchmarks.rows_out import cpu, drain, latency, whole, workers
from benchmarks.stages import ROW as STAGES
from benchmarks.stages import stages

ROWS: dict[str, Callable[[Plan], list[Figure]]] = {
    "unary": unary,
    "batch": batch,
    EVERYTHING: everything,
    "drain": drain,
    "whole": whole,
    "cpu": cpu,
    "latency": latency,
    "ok_latency": ok_latency,
    "nats_unary": nats_unary,
    "nats_batch": nats_batch,
    "nats_drain": nats_drain,
    "nats_sync": nats_sync,
    "mapping": mapping,
    STAGES: stages,
    "workers": workers,
    "backlog": backlog,
    "growth": growth,
    "window": window,
}
ON_REQUEST = {"backlog", "growth", "window"}  # minutes and gigabytes


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the rows that the command line names, or the default ones."""
    given = _parser().parse_args(arguments)
    names = given.rows or [name for name in ROWS if name not in ON_REQUEST]
    if given.picture and STAGES not in names:
        names = [*names, STAGES]
    plan = Plan(given.rounds or (1 if given.short else 5), given.short, given.folder)
    console = Console(width=None if sys.stdout.isatty() else 160)
    machine = describe(plan)
    console.print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n", highlight=False)
    figures: list[Figure] = []
    for name in names:
        console.print(f"[dim]{name} ...[/dim]")
        figures += ROWS[name](plan)
    console.print(table(figures))
    if given.json:
        found = {"machine": machine, "rounds": plan.rounds, "figures": [figure.as_json() for figure in figures]}
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    if given.picture:
        given.picture.write_text(draw([figure for figure in figures if figure.row == STAGES]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="How near the service comes to its ceilings."
    )
    parser.add_argument(
        "rows",
        nargs="*",
        choices=[*ROWS, []],
        metavar="ROW",
        help=f"of {', '.join(ROWS)}; all but {' and '.join(sorted(ON_REQUEST))} by default",
    )
    parser.add_argument("--rounds", type=int, help="rounds of each row (5, or 1 with --short)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure, round by round, to a file")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw where the microseconds go, as SVG")
    parser.add_argument("--short", action="store_true", help="tiny counts: to see that it works, not to learn from it")
    parser.add_argument("--folder", type=Path, help="where outboxes are made; on the disk whose fsync is to count")
    return parser


def describe(plan: Plan) -> dict[str, str]:
    """What the figures depend on besides the code."""
    folder = (plan.folder or Path(gettempdir())).resolve()
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} CPUs",
        "load": "{:.2f} {:.2f} {:.2f}".format(*os.getloadavg()),
        "outboxes": f"{folder} ({file_system(folder)}), fsync takes {_fsync_micros(folder):,.0f} µs",
        "unary load": "h2load" if h2load.is_there() else "Python client, which costs as much as the server; see README",
    }


def file_system(folder: Path) -> str:
    """The type of the file system that a folder is on. On tmpfs an fsync costs nothing, and figures mean little."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    over = [(len(place), kind) for place, kind in mounts if folder.is_relative_to(place)]
    return max(over)[1]


def _fsync_micros(folder: Path) -> float:
    path = folder / f"fsync-{os.getpid()}"
    try:
        with path.open("wb", buffering=0) as file:
            times = []
            for _ in range(20):
                file.write(bytes(4096))
                started = time.perf_counter()
                os.fsync(file.fileno())
                times.append(time.perf_counter() - started)
    finally:
        path.unlink(missing_ok=True)
    return sorted(times)[10] * 1e6


if __name__ == "__main__":
    main()
