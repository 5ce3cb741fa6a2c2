"""The oracle for as long as one likes: `python -m tests.acceptance.soak --kills 200`, or `--outbox nats --kills 100`.

With the outbox in a file the server is killed; with NATS three replicas and the three servers of a cluster are, one at
a time, or stopped for a while. ORACLE_SEED sets the seed of what is drawn. Prints a table, and ends with 1 where
anything was lost, invented or changed.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.acceptance.crashes import CrashRun, drawn_seed
from tests.acceptance.nats_crashes import NatsCrashRun
from tests.acceptance.oracle import Verdict

KILLS = {"sqlite": 200, "nats": 100}
PROGRESS_EVERY = 10  # kills
NODES = 3  # nats-servers
STOP_SHARE = 0.15  # of the kills of replicas and nats-servers, those that are a stop for some seconds instead


def tell(run: CrashRun | NatsCrashRun) -> None:
    """Say on standard error how far it is."""
    kills = run.kills if isinstance(run, CrashRun) else run.kills.total()
    if kills % PROGRESS_EVERY == 0:
        sys.stderr.write(f"{kills} kills, {len(run.ledger.accepted)} events accepted, {run.seconds:.0f} s\n")


def table(run: CrashRun | NatsCrashRun, verdict: Verdict) -> Table:
    """The whole run in a few lines."""
    killed: dict[str, int]
    if isinstance(run, CrashRun):
        killed = {"kills": run.kills}
    else:
        killed = dict(sorted(run.kills.items())) | {"calls told to try again": run.clients.refused}
    rows = {
        "seed": run.seed,
        **killed,
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


async def soak(outbox: str, kills: int, workers: int, seed: int, folder: Path) -> int:
    """Run, and print the table; returns the exit code."""
    run: CrashRun | NatsCrashRun
    if outbox == "sqlite":
        run = CrashRun(folder / "outbox.db", seed, workers=workers)
    else:
        run = NatsCrashRun(folder / "nats", seed, NODES, stop_share=STOP_SHARE)
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
    parser.add_argument("--outbox", choices=KILLS, default="sqlite", help="where events are kept")
    parser.add_argument("--kills", type=int, help=f"how often something is killed; without it {KILLS}")
    parser.add_argument("--workers", type=int, default=0, help="POINTILLIST_RELAY_WORKERS, for the outbox on SQLite")
    given = parser.parse_args()
    kills = KILLS[given.outbox] if given.kills is None else given.kills
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        sys.exit(asyncio.run(soak(given.outbox, kills, given.workers, drawn_seed(), Path(folder))))


if __name__ == "__main__":
    main()
