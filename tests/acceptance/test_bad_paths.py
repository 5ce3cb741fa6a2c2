"""A HEADERS frame whose path is not UTF-8 ends grpc.aio's server; another one listens at once, and nothing is lost."""

from pathlib import Path

from tests.acceptance.attacks import INTERVAL, bad_paths
from tests.acceptance.neighbours import street
from tests.support.sizes import sized

SECONDS = sized(2, 60)
MAX_LOG = 1024  # bytes for each frame
BASE_LOG = 16 * 1024  # bytes that the server logs anyhow, at its start and end, and for honest calls
ACCESS_LOG = 4 * 1024  # bytes a second, of honest calls


async def test_honest_callers_barely_notice_that_the_listeners_are_ended_twice_a_second(tmp_path: Path) -> None:
    async with street(tmp_path) as here:
        # when
        frames = await here.beside(lambda: bad_paths(here, SECONDS))
        metrics = await here.server.metrics()
        await here.until_delivered()
        await here.stop()

        # then
        here.show()
        restarts = metrics["listener_restarts_total{grpc}"] + metrics["listener_restarts_total{health}"]
        assert restarts >= frames >= SECONDS / INTERVAL
        assert (metrics["ready"], metrics["listening{grpc}"], metrics["listening{health}"]) == (1, 1, 1)
        assert here.seen["track"].ok_share >= 0.98
        assert here.seen["batch"].ok_share >= 0.98
        assert here.seen["health"].missed_in_a_row <= 1
        assert here.server.log_bytes < frames * MAX_LOG + BASE_LOG + SECONDS * ACCESS_LOG
