"""The oracle for as long as one likes: `python -m tests.acceptance.soak --kills 200`.

ORACLE_SEED sets the seed of what is drawn. Prints a table, and ends with 1 where anything was lost, invented or
changed.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.acceptance.crashes import CrashRun, drawn_seed
from tests.acceptance.oracle import Verdict

KILLS = 200
PROGRESS_EVERY = 10  # kills


def tell(run: CrashRun) -> None:
    """Say on standard error how far it is."""
    if run.kills % PROGRESS_EVERY == 0:
        sys.stderr.write(f"{run.kills} kills, {len(run.ledger.accepted)} events accepted, {run.seconds:.0f} s\n")


def table(run: CrashRun, verdict: Verdict) -> Table:
    """The whole run in a few lines."""
    rows = {
        "seed": run.seed,
        "kills": run.kills,
        "events sent": verdict.ledger.sent,
        "accepted": len(verdict.ledger.accepted),
        "sent again": len(verdict.ledger.repeated),
        "delivered": len(verdict.evidence.delivered),
        "duplicate deliveries": verdict.evidence.duplicates,
        "dead letters": len(verdict.evidence.dead),
        "lost": len(verdict.lost),
        "invented": len(verdict.invented),
        "changed": len(verdict.changed),
        "falsely called duplicates": len(verdict.ledger.false_duplicates),
        "seconds": round(run.seconds),
    }
    shown = Table("count", "value", title="No acknowledged event is lost")
    shown.columns[1].justify = "right"
    for name, value in rows.items():
        shown.add_row(name, str(value))
    return shown


async def soak(kills: int, workers: int, seed: int, folder: Path) -> int:
    """Run, and print the table; returns the exit code."""
    run = CrashRun(folder / "outbox.db", seed, workers=workers)
    verdict = await run.run(kills, tell)
    console = Console(width=80)
    console.print(table(run, verdict))
    for kind, examples in verdict.faults.items():
        console.print(f"{kind}: {examples}")
    if not verdict.evidence.duplicates:
        console.print("no delivery was repeated, so this run does not show that replay works")
    return 1 if verdict.faults or not verdict.evidence.duplicates else 0


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.acceptance.soak")
    parser.add_argument("--kills", type=int, default=KILLS, help="how often the server is killed")
    parser.add_argument("--workers", type=int, default=0, help="POINTILLIST_RELAY_WORKERS of the server")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        sys.exit(asyncio.run(soak(given.kills, given.workers, drawn_seed(), Path(folder))))


if __name__ == "__main__":
    main()
