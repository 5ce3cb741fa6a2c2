"""What safety and sight cost: the service with all that production turns on, beside itself with all of it off."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.child import Child
from benchmarks.figures import Figure, Sample
from benchmarks.load import Access
from benchmarks.plan import Plan, check_accepted, measured, nobody, ours
from benchmarks.rows_in import BATCH_SIZE, CALLERS, UnaryLoad, stream, streamed
from tests.support.certificates import make_authority, make_certificate

ROW = "everything"
TOKEN = hashlib.sha256(b"benchmark").hexdigest()  # as long as a real one
OFF = "all of it off"
BOUND = ">= 0.8x"


@contextlib.contextmanager
def both(folder: Path) -> Iterator[tuple[Child, Access, Child]]:
    """The service with TLS, callers' tokens, metrics and the access log, how to get in, and the service without."""
    authority = make_authority(folder, "authority")
    certificate = make_certificate(folder, "server", authority)
    callers = folder / "callers.toml"
    callers.write_text(f'[callers.benchmark]\nsha256 = "{hashlib.sha256(TOKEN.encode()).hexdigest()}"\n')
    with (
        nobody() as url,
        ours(
            folder / "on.db",
            url,
            tls_cert_file=str(certificate.certificate),
            tls_key_file=str(certificate.key),
            callers_file=str(callers),
            log_level="info",
        ) as on,
        ours(folder / "off.db", url, metrics_listen="") as off,
    ):
        yield on, Access(str(authority.certificate), TOKEN), off


def everything(plan: Plan) -> list[Figure]:
    """Unary calls and batches."""
    return [_unary(plan), _batch(plan)]


def _unary(plan: Plan) -> Figure:
    count, warm_up = plan.count(20_000, 128), plan.count(2_000, 64)
    with plan.new_folder() as folder, both(folder) as (on, access, off), UnaryLoad() as load:
        load.flat_out(on, warm_up, access)
        load.flat_out(off, warm_up)
        mine, theirs = _rounds(
            plan,
            lambda _: measured(on, count, lambda: load.flat_out(on, count, access).seconds),
            lambda _: measured(off, count, lambda: load.flat_out(off, count).seconds),
        )
        _check(folder, warm_up + plan.rounds * count)
    return Figure(ROW, f"Track, {CALLERS} callers", "events/s", mine, theirs, OFF, BOUND)


def _batch(plan: Plan) -> Figure:
    count, warm_up = plan.count(400, 4), plan.count(50, 2)
    with plan.new_folder() as folder, both(folder) as (on, access, off), Child("load") as load:
        stream(load, on, "w-", warm_up, access)
        stream(load, off, "w-", warm_up)
        mine, theirs = _rounds(
            plan,
            lambda run: streamed(load, on, run, count, access),
            lambda run: streamed(load, off, run, count),
        )
        _check(folder, (warm_up + plan.rounds * count) * BATCH_SIZE)
    return Figure(ROW, f"BatchSend, {BATCH_SIZE} a message", "events/s", mine, theirs, OFF, BOUND)


def _rounds(
    plan: Plan, mine: Callable[[str], Sample], theirs: Callable[[str], Sample]
) -> tuple[list[Sample], list[Sample]]:
    pairs = [(mine(f"{index}-"), theirs(f"{index}-")) for index in range(plan.rounds)]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _check(folder: Path, events: int) -> None:
    for name in ("on.db", "off.db"):
        check_accepted(folder / name, events)
