"""Processes of our own, whose CPU and memory the operating system counts apart from ours. Linux only.

A child is `python -m benchmarks.<module> <arguments>`. It writes one line of JSON when it is ready; after that some
children answer each line of JSON on their standard input with another. The end of that input ends the child, so that
none outlives this process, however it ends.
"""

import contextlib
import ctypes
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
START_TIME = 60.0  # seconds that a child may take until it is ready
STOP_TIME = 20.0  # seconds that it may take to end
ANSWER_TIME = 180.0  # seconds that it may take for an answer, unless told otherwise
MEBIBYTE = 1024.0  # kB, as /proc counts


class ChildError(Exception):
    """A child ended or kept silent; the message has what it wrote to its standard error."""


class Child:
    """A child process, ended when the context is left."""

    def __init__(self, module: str, *arguments: str, settings: Mapping[str, str] | None = None) -> None:
        """Start it and wait until it is ready.

        Args:
            module: a module of this package.
            arguments: its arguments.
            settings: environment variables it gets; no POINTILLIST_ variable of ours is passed on.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith("POINTILLIST_")}
        environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(ROOT / "generated")))
        self._name = module
        self._errors = TemporaryFile()  # noqa: SIM115  it is closed with the child
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**environment, **(settings or {})},
            cwd=ROOT,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._buffer = b""
        try:
            self.ready: dict[str, Any] = self._read(START_TIME)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it."""
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        try:
            self._process.wait(STOP_TIME)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
        self._errors.close()

    def tell(self, **command: Any) -> None:
        """Send a command whose answer is read later, by `answer`."""
        try:
            self._input.write(json.dumps(command).encode() + b"\n")
            self._input.flush()
        except BrokenPipeError:
            raise self._error("it ended") from None

    def answer(self, most: float = ANSWER_TIME) -> dict[str, Any]:
        """Read an answer, waiting for `most` seconds."""
        return self._read(most)

    def ask(self, *, most: float = ANSWER_TIME, **command: Any) -> dict[str, Any]:
        """Send a command and read its answer."""
        self.tell(**command)
        return self._read(most)

    # -- what the operating system counts

    def cpu(self) -> float:
        """Seconds of CPU, user and system, of all its threads and of the processes that it has started, so far."""
        pid = self._process.pid
        tasks = Path(f"/proc/{pid}/task").iterdir() if Path(f"/proc/{pid}").exists() else ()
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
        return sum(process_cpu(process) for process in (pid, *children))

    def memory(self) -> float:
        """Resident memory now, in MiB."""
        return self._status("VmRSS")

    def peak_memory(self) -> float:
        """The most resident memory since its start, in MiB."""
        return self._status("VmHWM")

    def _status(self, name: str) -> float:
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return float(line.split()[1]) / MEBIBYTE
        raise self._error(f"/proc has no {name} of it")

    def _read(self, most: float) -> dict[str, Any]:
        deadline = time.monotonic() + most
        while b"\n" not in self._buffer:
            readable, _, _ = select.select([self._output], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise self._error(f"it said nothing for {most:g} s")
            read = os.read(self._output.fileno(), 1 << 20)
            if not read:
                raise self._error("it ended")
            self._buffer += read
        line, self._buffer = self._buffer.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _error(self, what: str) -> ChildError:
        self._errors.seek(0)
        written = self._errors.read().decode(errors="replace")[-4000:]
        return ChildError(f"benchmarks.{self._name}: {what}\n{written}")


def process_cpu(pid: int) -> float:
    """Seconds of CPU of a process, from the clock that POSIX gives each process, to the nanosecond."""
    clock = ctypes.c_int()
    fault = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    if fault:
        raise OSError(fault, f"clock_getcpuclockid({pid})")
    return time.clock_gettime(clock.value)
