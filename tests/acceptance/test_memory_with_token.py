"""Callers with a token that need much memory: large batches on many streams, and answers that nobody reads."""

import os
from pathlib import Path

import grpc

from pointillist_destination.v1.dead_letter_service_pb2 import ListRequest
from tests.acceptance.attacks import IN_LARGE_BATCH, bury_some, large_batches
from tests.acceptance.neighbours import BAD, DEAD_LETTER_SERVICE, street
from tests.support.cgroups import memory_cgroup
from tests.support.raw_http2 import message, raw_connection
from tests.support.sizes import sized
from tests.support.waiting import until

GIBIBYTE = 1024**3
STREAMS = sized(15, 200)
LISTS = sized(100, 200)
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
MAX_UNREAD = 16 * 1024 * 1024  # bytes of one caller's answers
MAX_KEPT = MAX_UNREAD // 230_000  # a page is a little smaller than its bound of 256 KiB
MAX_MISSED = 4  # probes in a row, of four a second: the test itself keeps the machine busy with 800 MB


async def test_large_batches_on_many_streams_and_unread_pages_fit_into_a_gibibyte(tmp_path: Path) -> None:
    with memory_cgroup(f"pointillist-{os.getpid()}", GIBIBYTE) as group:
        async with street(tmp_path) as here, raw_connection(here.address, window=0) as unread:
            # given
            (group / "cgroup.procs").write_text(str(here.server.process.pid), encoding="ascii")
            await bury_some(here)

            async def attack() -> int:
                for _ in range(LISTS):
                    request = message(ListRequest().SerializeToString())
                    await unread.call(f"{DEAD_LETTER_SERVICE}/List", request, token=BAD)
                return await large_batches(here, 0, streams=STREAMS)

            # when
            accepted = await here.beside(attack)
            await here.until_delivered()

            # then nothing is lost, and only some of the pages are kept for who does not read them
            assert accepted == STREAMS * IN_LARGE_BATCH
            answers = list(unread.answers.values())
            await until(lambda: sum(answer.is_ended for answer in answers) >= LISTS - MAX_KEPT)
            refused = [answer for answer in answers if answer.is_ended]
            assert {answer.code for answer in refused} == {UNAVAILABLE}
            assert all("not read" in answer.status.message for answer in refused)

            # then who reads has them after all
            for stream, answer in unread.answers.items():
                if not answer.is_ended:
                    await unread.open_window(stream)
            await unread.open_window(0)
            await until(lambda: all(answer.is_ended for answer in answers))
            assert {answer.code for answer in answers} == {0, UNAVAILABLE}
            assert sum(answer.data for answer in answers) <= MAX_UNREAD
            await here.stop()
            here.show()
            assert here.seen["track"].ok_share == here.seen["batch"].ok_share == 1
            assert here.seen["health"].missed_in_a_row <= MAX_MISSED
