"""h2load, the load generator for unary calls where it is installed (Debian: nghttp2-client).

A Python client takes about as long for a call as the server does, and so measures itself. h2load takes a tenth of it.
It sends one prepared body again and again and does not see a gRPC status, which stands in the trailers: whoever uses
it looks into the outbox for how many events were really taken.
"""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.events import framed_track_request
from benchmarks.load import TRACK, Access

CONNECTIONS = 4
RUN_TIME = 180.0  # seconds that one run may take
PACERS = 16  # processes that share a paced run
HEADERS = ("-H", "content-type: application/grpc", "-H", "te: trailers")
MAX_STREAMS = 1000  # calls at a time on the one connection of a paced run: more than there will ever be


class H2loadError(Exception):
    """h2load failed, or some of its requests did."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a run came to."""

    seconds: float
    latencies: tuple[float, ...]
    """Seconds, one a call."""


def is_there() -> bool:
    """Whether h2load is installed."""
    return shutil.which("h2load") is not None


def flat_out(port: int, count: int, callers: int, access: Access | None = None) -> Load:
    """Make `count` calls of Track, `callers` at a time; with `access` over TLS, but h2load trusts any certificate."""
    connections = min(CONNECTIONS, callers)
    options = ["-n", str(count), "-c", str(connections), "-m", str(callers // connections)]
    if access is None:
        return _run(port, [[*options, _address(port)]])
    return _run(port, [[*options, "-H", f"authorization: Bearer {access.token}", _address(port, "https")]])


def paced(port: int, at: Sequence[float]) -> Load:
    """Make a call of Track at each of these times, in seconds after the start, whatever became of earlier ones.

    Many processes take turns: h2load is late by up to a millisecond after each call and does not make up for it, which
    matters the less the longer the time between two of its calls. What rate was reached is in the answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for index in range(min(PACERS, len(at))):
            script = Path(folder, str(index))
            mine = at[index::PACERS]
            script.write_text("".join(f"{seconds * 1000:.3f}\t{_address(port)}\n" for seconds in mine))
            options = ["-n", str(len(mine)), "-c", "1", "-m", str(MAX_STREAMS)]
            runs.append([*options, f"--timing-script-file={script}"])
        return _run(port, runs)


def _address(port: int, scheme: str = "http") -> str:
    return f"{scheme}://127.0.0.1:{port}{TRACK}"


def _run(port: int, runs: Sequence[Sequence[str]]) -> Load:
    """Run h2load with each of these options, all at the same time."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        body = Path(folder, "body")
        body.write_bytes(framed_track_request())
        processes = []
        for index, options in enumerate(runs):
            command = ["h2load", f"--log-file={folder}/log{index}", "-d", str(body), *HEADERS, *options]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            stack.callback(process.kill)  # where it has ended, this does nothing
            processes.append(process)
        for process in processes:
            written, _ = process.communicate(timeout=RUN_TIME)
            if process.returncode or " 0 failed, 0 errored, 0 timeout" not in written:
                raise H2loadError(f"h2load to port {port}: {written}")
        rows = [line.split("\t") for log in Path(folder).glob("log*") for line in log.read_text().splitlines()]
    starts = [int(row[0]) for row in rows]
    ends = [int(row[0]) + int(row[2]) for row in rows]
    return Load((max(ends) - min(starts)) / 1e6, tuple(int(row[2]) / 1e6 for row in rows))
