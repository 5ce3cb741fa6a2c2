"""`send` stopped midway and run again on the same file: nothing is lost, and nothing is sent to Pointillist twice."""

import json
import signal
from pathlib import Path

import pytest

from tests.support.processes import end, run, start
from tests.support.sandboxes import running_sandbox, until_taken
from tests.support.server_processes import running_server
from tests.support.sizes import sized

COUNT = sized(1000, 2000)  # events in the file, without ids of their own
BAD = 5  # lines among them that are refused, at the beginning
MAX_WAITING = 200  # events in the outbox: so the server keeps pace with the sandbox, and no sender gets far ahead
BEFORE = 300  # events that have arrived when the sender is stopped


def big_file(path: Path) -> Path:
    """Bad lines, then events that only their number tells from each other."""
    bad = b'{"type": "track", "userId": "u"}\n' * BAD
    good = (
        json.dumps({"type": "track", "userId": "u", "event": "Seen", "properties": {"number": number}})
        for number in range(COUNT)
    )
    path.write_bytes(bad + "".join(f"{line}\n" for line in good).encode())
    return path


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT], ids=lambda stop: stop.name)
async def test_a_file_whose_sending_was_stopped_midway_is_sent_again_and_each_event_is_posted_once(
    tmp_path: Path, stop: signal.Signals
) -> None:
    file, refused = str(big_file(tmp_path / "big.jsonl")), tmp_path / "refused.jsonl"
    async with (
        running_sandbox() as sandbox,
        running_server(sandbox, tmp_path, outbox_max_events=str(MAX_WAITING)) as server,
    ):
        # given
        sending = ("send", file, "--target", server.address, "--batch-size", "10")
        first = await start(*sending, "--refused", str(refused))
        await until_taken(sandbox, BEFORE)

        # when
        first.send_signal(stop)
        stopped = await end(first)
        again = await run(*sending, "--refused", str(tmp_path / "refused-again.jsonl"))

        # then
        summary = dict(line.split(": ", 1) for line in again.out_lines)
        assert BEFORE <= int(summary["duplicates"]) < COUNT
        assert int(summary["accepted"]) + int(summary["duplicates"]) == COUNT
        assert len(await until_taken(sandbox, COUNT)) == COUNT
        assert sandbox.requests == sandbox.taken == COUNT

        # and what was refused stayed
        assert len(refused.read_bytes().splitlines()) == BAD
        assert stopped.code == (130 if stop == signal.SIGINT else -stop)
        assert "Traceback" not in stopped.err
        if stop == signal.SIGINT:
            assert stopped.out_lines[0].startswith("accepted: ")
            assert stopped.err_lines[-1].startswith("interrupted; send the same file again to go on")
