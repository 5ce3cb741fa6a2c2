"""The oracle for as long as one likes: `python -m tests.acceptance.soak --kills 200`, or `--outbox nats --kills 100`.

With the outbox in a file the server is killed; with NATS three replicas and the three servers of a cluster are, one at
a time, or stopped for a while. With `--disk-faults 100` it is the disk of the file that refuses, is full, hangs or is
slow so many times, while the server is killed now and then. ORACLE_SEED sets the seed of what is drawn. Prints a table,
and ends with 1 where anything was lost, invented or changed; with disk faults also where anything was delivered twice
without a kill, or memory went beyond its bound. With `--attacks 10` bad neighbours do in turn, for so many minutes in
all, what the tests beside have them do for a second each; honest callers go on, and lose nothing.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.table import Table

from tests.acceptance import attacks
from tests.acceptance.crashes import CrashRun, drawn_seed
from tests.acceptance.disk_faults import MAX_GROWTH, DiskFaultRun, DiskFaultVerdict
from tests.acceptance.nats_crashes import NatsCrashRun
from tests.acceptance.neighbours import Street, street
from tests.acceptance.oracle import Verdict
from tests.support.preloading import why_no_preloading

AnyRun: TypeAlias = "CrashRun | NatsCrashRun | DiskFaultRun"

KILLS = {"sqlite": 200, "nats": 100}
PROGRESS_EVERY = 10  # kills
NODES = 3  # nats-servers
STOP_SHARE = 0.15  # of the kills of replicas and nats-servers, those that are a stop for some seconds instead


def tell(run: CrashRun | NatsCrashRun) -> None:
    """Say on standard error how far it is."""
    kills = run.kills if isinstance(run, CrashRun) else run.kills.total()
    if kills % PROGRESS_EVERY == 0:
        sys.stderr.write(f"{kills} kills, {len(run.ledger.accepted)} events accepted, {run.seconds:.0f} s\n")


def tell_faults(run: DiskFaultRun) -> None:
    """Say on standard error how far it is, at each end of a server."""
    faults, accepted = run.faults.total(), len(run.ledger.accepted)
    sys.stderr.write(f"{faults} faults, {run.kills} kills, {accepted} events accepted, {run.seconds:.0f} s\n")


def disturbances(run: AnyRun) -> dict[str, object]:
    """The rows on what was done to the servers, and how they took it."""
    if isinstance(run, CrashRun):
        return {"kills": run.kills}
    if isinstance(run, NatsCrashRun):
        return {**dict(sorted(run.kills.items())), "calls told to try again": run.clients.refused}
    return {
        "kills": run.kills,
        "kills while the disk was bad": run.kills_on_bad_disk,
        "starts that a bad disk refused": run.refused_starts,
        **{f"faults: {mode}": count for mode, count in sorted(run.faults.items())},
        **{f"met: {kind}": count for kind, count in run.disk.met.items()},
        **{f"calls: {reason}": count for reason, count in sorted(run.refused.items())},
        "memory of an idle server, KiB": run.baseline,
        "peak memory, KiB": run.peak,
        "its bound, KiB": run.baseline + MAX_GROWTH,
    }


def table(run: AnyRun, verdict: Verdict) -> Table:
    """The whole run in a few lines."""
    rows = {
        "seed": run.seed,
        **disturbances(run),
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
        **repeats(verdict),
        "seconds": round(run.seconds),
    }
    shown = Table("count", "value", title="No acknowledged event is lost")
    shown.columns[1].justify = "right"
    for name, value in rows.items():
        shown.add_row(name, str(value))
    return shown


def repeats(verdict: Verdict) -> dict[str, object]:
    """The rows on deliveries that no kill explains."""
    if not isinstance(verdict, DiskFaultVerdict):
        return {}
    return {
        "delivered twice without a crash": len(verdict.repeats.within_a_life),
        "delivered again once settled": len(verdict.repeats.of_settled),
    }


def report(run: AnyRun, verdict: Verdict) -> int:
    """Print the table and everything that is wrong; returns the exit code."""
    console = Console(width=80)
    console.print(table(run, verdict))
    for kind, examples in verdict.faults.items():
        console.print(f"{kind}: {examples}", markup=False)
    if not verdict.evidence.duplicates:
        console.print("no delivery was repeated, so this run does not show that replay works")
    return 1 if verdict.faults or not verdict.evidence.duplicates else 0


async def attack(here: Street, minutes: float) -> Table:
    """Attack a server in every way in turn, for some minutes in all; returns what honest callers saw meanwhile."""
    seconds = minutes * 60 / len(attacks.ALL)
    shown = Table("attack", "how much", "calls", "not OK", "p50, ms", "p99, ms", "peak, MiB")
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, one in attacks.ALL.items():
        here.peak = 0
        number = await here.beside(lambda one=one: one(here, seconds))  # type: ignore[misc]  # mypy knows no such default
        calls = [here.seen[kind] for kind in ("track", "batch")]
        times = sorted(time for seen in calls for time in seen.milliseconds)
        total, good = sum(sum(seen.codes.values()) for seen in calls), sum(seen.codes.get("OK", 0) for seen in calls)
        here.owed |= here.accepted()
        p50, p99 = (f"{times[int(len(times) * share)]:.0f}" for share in (0.5, 0.99))
        shown.add_row(name, str(number), str(total), str(total - good), p50, p99, str(here.peak))
    return shown


async def soak_attacks(minutes: float, folder: Path) -> int:
    """Attack a server, and print the table; returns the exit code."""
    async with street(folder) as here:
        await attacks.bury_some(here)
        shown = await attack(here, minutes)
        while (left := (await here.server.metrics())["outbox_events"]) > 0:  # there may be gigabytes of large batches
            await here.server.until_metrics(lambda metrics: metrics["outbox_events"] < left)
        lost = len(here.owed - here.delivered())
        await here.stop()
    console = Console(width=110)
    console.print(shown)
    console.print(f"accepted: {len(here.owed)}; lost: {lost}")
    console.print(f"log: {here.server.log_bytes} bytes; SIGTERM: {here.stopped_in:.1f} s")
    return 1 if lost or not here.owed else 0


async def soak_disk(faults: int, seed: int, folder: Path) -> int:
    """Run with a disk that fails, and print the table; returns the exit code."""
    if (reason := why_no_preloading()) is not None:
        sys.stderr.write(f"skipped, a disk that fails: {reason}\n")
        return 0
    run = DiskFaultRun(folder / "outbox.db", seed)
    return report(run, await run.run(faults, tell_faults))


async def soak(outbox: str, kills: int, workers: int, seed: int, folder: Path) -> int:
    """Run, and print the table; returns the exit code."""
    run: CrashRun | NatsCrashRun
    if outbox == "sqlite":
        run = CrashRun(folder / "outbox.db", seed, workers=workers)
    else:
        run = NatsCrashRun(folder / "nats", seed, NODES, stop_share=STOP_SHARE)
    return report(run, await run.run(kills, tell))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.acceptance.soak")
    parser.add_argument("--outbox", choices=KILLS, default="sqlite", help="where events are kept")
    parser.add_argument("--kills", type=int, help=f"how often something is killed; without it {KILLS}")
    parser.add_argument("--disk-faults", type=int, help="how often the disk fails, with the outbox on SQLite")
    parser.add_argument("--attacks", type=float, help="minutes of attacks by bad neighbours, beside honest callers")
    parser.add_argument("--workers", type=int, default=0, help="POINTILLIST_RELAY_WORKERS, for the outbox on SQLite")
    given = parser.parse_args()
    if given.disk_faults is not None and (given.outbox != "sqlite" or given.kills is not None or given.workers):
        parser.error("--disk-faults goes with no other option: the disk is that of a file, and kills are drawn")
    kills = KILLS[given.outbox] if given.kills is None else given.kills
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder, seed = Path(name), drawn_seed()
        if given.attacks is not None:
            sys.exit(asyncio.run(soak_attacks(given.attacks, folder)))
        if given.disk_faults is not None:
            sys.exit(asyncio.run(soak_disk(given.disk_faults, seed, folder)))
        sys.exit(asyncio.run(soak(given.outbox, kills, given.workers, seed, folder)))


if __name__ == "__main__":
    main()
