"""The dead letters of an outbox on JetStream: a separate stream, read from end to end if a filter requires it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from service.errors import JetStreamError, OutboxUnavailableError
from service.outbox.base import UNREADABLE, DeadLetter, DeadLetterFilter, Replayed
from service.outbox.jetstream.connection import NOT_FOUND, UNREACHED_RETRY, Connection, Received
from service.outbox.jetstream.headers import delivery_of, letter_of, matches, parse_headers, replay_headers
from service.outbox.jetstream.publisher import Message, Publisher
from service.outbox.jetstream.puller import Puller
from service.outbox.jetstream.streams import SECOND, Plan

READ_AT_ONCE = 200  # dead letters in memory at a time
MAX_REQUESTS = 50  # concurrent requests for dead letters by their ids
READER_TIME = 30  # seconds after which JetStream deletes an idle reader

Item = TypeVar("Item")


class DeadLetterStream:
    """The stream of the dead letters of one outbox."""

    def __init__(self, connection: Connection, publisher: Publisher, plan: Plan) -> None:
        self._connection = connection
        self._publisher = publisher
        self._plan = plan
        self._stream = plan.letters_stream
        self._received: list[Received] = []
        self.puller = Puller(connection, self._received.append)
        self._reading = asyncio.Lock()

    async def newest(self) -> int:
        """Return the highest id that a dead letter ever had."""
        return int((await self._connection.call_api(f"STREAM.INFO.{self._stream}"))["state"]["last_seq"])

    async def find(self, which: DeadLetterFilter, *, after: int, limit: int) -> list[DeadLetter]:
        """Return dead letters by rising id. See DeadLetters.list."""
        letters: list[DeadLetter] = []
        async with aclosing(self._matching(which, after, await self.newest())) as matching:
            async for some in matching:
                letters += some[: limit - len(letters)]
                if len(letters) >= limit:
                    break
        return letters

    async def replay(self, which: DeadLetterFilter, queued_at: int) -> Replayed:
        """Publish dead letters to the end of the queue; `queued_at` is in milliseconds.

        Each is in the queue before it is deleted here: after a crash in between it is in both, and a second replay
        finds the event in the duplicate window.
        """
        moved = left = 0
        async with aclosing(self._matching(which, 0, await self.newest())) as matching:
            async for page in matching:
                some = [letter for letter in page if letter.refusal.reason != UNREADABLE]
                messages = [Message(letter.payload, replay_headers(letter, queued_at)) for letter in some]
                await self._publisher.publish(self._plan.events_subject, messages)
                moved += await self._delete(some)
                left += len(page) - len(some)
        return Replayed(moved, left)

    async def delete(self, which: DeadLetterFilter) -> int:
        """Delete dead letters for good."""
        newest = await self.newest()
        if which == DeadLetterFilter():
            answer = await self._connection.call_api(f"STREAM.PURGE.{self._stream}", {"seq": newest + 1})
            return int(answer["purged"])
        count = 0
        async with aclosing(self._matching(which, 0, newest)) as matching:
            async for some in matching:
                count += await self._delete(some)
        return count

    async def _delete(self, letters: Sequence[DeadLetter]) -> int:
        count = 0
        for some in _chunks(letters):
            count += sum(await asyncio.gather(*(self._delete_one(letter.id) for letter in some)))
        return count

    async def _delete_one(self, id_: int) -> bool:
        """Delete one; return False if it was deleted already."""
        try:
            await self._connection.call_api(f"STREAM.MSG.DELETE.{self._stream}", {"seq": id_, "no_erase": True})
        except JetStreamError as error:
            if error.code in {400, NOT_FOUND}:  # it does not exist
                return False
            raise
        return True

    # -- reading

    async def _matching(
        self, which: DeadLetterFilter, after: int, newest: int
    ) -> AsyncGenerator[list[DeadLetter], None]:
        """Yield the dead letters that match, by rising id up to `newest`, some at a time."""
        if which.ids is not None:
            ids = sorted({id_ for id_ in which.ids if after < id_ <= newest})
            for some in _chunks(ids):
                found = await asyncio.gather(*map(self._get, some))
                yield [letter for letter in found if letter is not None and matches(letter, which)]
        elif newest > after:
            async with aclosing(self._read(after, newest)) as read:
                async for letters in read:
                    yield [letter for letter in letters if matches(letter, which)]

    async def _get(self, id_: int) -> DeadLetter | None:
        found = await self._connection.find_message(self._stream, {"seq": id_})
        return None if found is None else letter_of(id_, parse_headers(found[0]), found[1])

    async def _read(self, after: int, newest: int) -> AsyncGenerator[list[DeadLetter], None]:
        """Yield all dead letters, some at a time. Between two pulls, other callers may read.

        Raises:
            OutboxUnavailableError: they could not be read to the end; a part is never taken for all.
        """
        reader = await self._open_reader(after)
        try:
            while after < newest:
                async with self._reading:
                    self._received.clear()
                    is_whole = await self.puller.pull(self._stream, reader, READ_AT_ONCE)
                    ours = [
                        one for one in self._received if f".{reader}." in one.reply
                    ]  # without late messages of others
                if not is_whole:
                    raise OutboxUnavailableError(
                        "NATS broke off while dead letters were read; try again", UNREACHED_RETRY
                    )
                found = [(delivery_of(one.reply).id, one) for one in ours]
                letters = [letter_of(id_, one.headers or {}, one.data) for id_, one in found if after < id_ <= newest]
                if not letters:
                    return
                after = letters[-1].id
                yield letters
        finally:
            await self._connection.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{reader}")

    async def _open_reader(self, after: int) -> str:
        """Create a consumer that JetStream deletes by itself; return its name."""
        config: dict[str, Any] = {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": after + 1,
            "ack_policy": "none",
            "replay_policy": "instant",
            "inactive_threshold": READER_TIME * SECOND,
            "mem_storage": True,
            "num_replicas": 1,
        }
        request = {"stream_name": self._stream, "config": config}
        return str((await self._connection.call_api(f"CONSUMER.CREATE.{self._stream}", request))["name"])


class JetStreamDeadLetters:
    """The DeadLetters of an outbox on JetStream. See DeadLetters."""

    def __init__(
        self,
        stream: DeadLetterStream,
        *,
        check_capacity: Callable[[], None],
        changed: Callable[[], Awaitable[None]],
        now: Callable[[], int],
    ) -> None:
        """Create it on the event loop that uses it.

        Args:
            stream: of the dead letters.
            check_capacity: raises OutboxUnavailableError while no event may be added to the queue.
            changed: called once dead letters were replayed or deleted.
            now: milliseconds since the epoch, by the corrected clock.
        """
        self._stream = stream
        self._check_capacity = check_capacity
        self._changed = changed
        self._now = now

    async def list(self, which: DeadLetterFilter, *, after: int, limit: int) -> Sequence[DeadLetter]:
        """Return dead letters by rising id. See DeadLetters.list."""
        return await self._stream.find(which, after=after, limit=limit) if limit else []

    async def replay(self, which: DeadLetterFilter) -> Replayed:
        """Move dead letters to the queue. See DeadLetters.replay."""
        self._check_capacity()
        replayed = await self._stream.replay(which, self._now())
        await self._changed()
        return replayed

    async def delete(self, which: DeadLetterFilter) -> int:
        """Delete dead letters for good. See DeadLetters.delete."""
        deleted = await self._stream.delete(which)
        await self._changed()
        return deleted


def _chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), MAX_REQUESTS):
        yield items[start : start + MAX_REQUESTS]
