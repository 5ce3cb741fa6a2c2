"""DeadLetterService: lists, shows, replays and deletes the events that were given up."""

import re
from collections.abc import Callable
from typing import TypeAlias

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from pointillist_destination.v1 import dead_letter_service_pb2, event_pb2
from service.events.validation import Violation, timestamp_violations
from service.mapping.mapping import Mapping
from service.outbox.base import DeadLetter, DeadLetterFilter, DeadLetters
from service.server import status
from service.server.calls import Calls
from service.server.request_reading import Context
from service.server.rpc import parse, unary

SERVICE_NAME = "pointillist_destination.v1.DeadLetterService"
PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
PAGE_TOKEN = re.compile("[0-9]{1,18}")  # an id, and small enough for SQLite
MAX_PAGE_BYTES = 256 * 1024  # of dead letters in one page: an answer that nobody reads stays in memory
READ_AT_A_TIME = 32  # dead letters, of 32 KiB each at most
MAX_IDS = 10_000  # in one filter

Choice: TypeAlias = dead_letter_service_pb2.ReplayRequest | dead_letter_service_pb2.DeleteRequest


class DeadLetterService:
    """The handlers of DeadLetterService."""

    def __init__(self, *, dead_letters: DeadLetters, mapping: Callable[[], Mapping]) -> None:
        """Make the service.

        Args:
            dead_letters: those of the outbox.
            mapping: gives the mapping in force.
        """
        self._dead_letters = dead_letters
        self._mapping = mapping

    async def list(self, request: bytes, _: Context) -> bytes:
        """List a page."""
        parsed = parse(dead_letter_service_pb2.ListRequest, request)
        found = _filter_violations(parsed.filter)
        if parsed.page_size > MAX_PAGE_SIZE:
            found.append(Violation("page_size", f"is {parsed.page_size}; 1 to {MAX_PAGE_SIZE} are allowed"))
        if parsed.page_token and not PAGE_TOKEN.fullmatch(parsed.page_token):
            found.append(Violation("page_token", "is not the next_page_token of an earlier page"))
        if found:
            raise status.invalid_request(found)
        limit = parsed.page_size or PAGE_SIZE
        response = dead_letter_service_pb2.ListResponse()
        await self._fill(response, _filter(parsed.filter), int(parsed.page_token or 0), limit)
        return response.SerializeToString()

    async def _fill(
        self, response: dead_letter_service_pb2.ListResponse, which: DeadLetterFilter, after: int, limit: int
    ) -> None:
        """Fill a page, a few dead letters at a time, so that commits and other calls come in between."""
        size = 0
        while True:
            asked = min(READ_AT_A_TIME, limit + 1 - len(response.dead_letters))
            letters = await self._dead_letters.list(which, after=after, limit=asked)
            for letter in letters:
                message = _message(letter)
                size += message.ByteSize()
                if len(response.dead_letters) == limit or (response.dead_letters and size > MAX_PAGE_BYTES):
                    response.next_page_token = str(response.dead_letters[-1].id)
                    return
                response.dead_letters.append(message)
            if len(letters) < asked:
                return
            after = letters[-1].id

    async def get(self, request: bytes, _: Context) -> bytes:
        """Show one."""
        parsed = parse(dead_letter_service_pb2.GetRequest, request)
        letters = await self._dead_letters.list(DeadLetterFilter(ids=(_id(parsed.id),)), after=0, limit=1)
        if not letters:
            raise status.no_dead_letter(parsed.id)
        [letter] = letters
        response = dead_letter_service_pb2.GetResponse(dead_letter=_message(letter))
        if response.dead_letter.HasField("event"):
            record = self._mapping().record(response.dead_letter.event, letter.accepted_at)
            response.record.CopyFrom(record)
        return response.SerializeToString()

    async def replay(self, request: bytes, _: Context) -> bytes:
        """Put some back into the queue."""
        which = _choice(parse(dead_letter_service_pb2.ReplayRequest, request))
        replayed = await self._dead_letters.replay(which)
        response = dead_letter_service_pb2.ReplayResponse(replayed=replayed.moved, still_invalid=replayed.left)
        return response.SerializeToString()

    async def delete(self, request: bytes, _: Context) -> bytes:
        """Delete some for good."""
        which = _choice(parse(dead_letter_service_pb2.DeleteRequest, request))
        deleted = await self._dead_letters.delete(which)
        return dead_letter_service_pb2.DeleteResponse(deleted=deleted).SerializeToString()


def _choice(request: Choice) -> DeadLetterFilter:
    """Which dead letters a request means; none by accident."""
    found = _filter_violations(request.filter)
    which = _filter(request.filter)
    is_everything = which == DeadLetterFilter()
    if request.all and not is_everything:
        found.append(Violation("all", "goes without a filter"))
    if not request.all and is_everything:
        found.append(Violation("filter", "is empty; set it, or set all for every dead letter"))
    if found:
        raise status.invalid_request(found)
    return which


def _filter_violations(given: dead_letter_service_pb2.DeadLetterFilter) -> list[Violation]:
    found = []
    if len(given.ids) > MAX_IDS:
        found.append(Violation("filter.ids", f"has {len(given.ids)} ids; {MAX_IDS} are allowed"))
    if given.HasField("since"):
        found += timestamp_violations("filter.since", given.since)
    if given.HasField("until"):
        found += timestamp_violations("filter.until", given.until)
    return found


def _filter(given: dead_letter_service_pb2.DeadLetterFilter) -> DeadLetterFilter:
    return DeadLetterFilter(
        ids=tuple(map(_id, given.ids)) or None,
        reason=given.reason or None,
        event_type=given.event_type or None,
        user_id=given.user_id or None,
        since=_milliseconds(given.since) if given.HasField("since") else None,
        until=_milliseconds(given.until) if given.HasField("until") else None,
    )


def _id(id_: int) -> int:
    """An id that SQLite can compare; one beyond its integers is no dead letter's."""
    return min(id_, 2**63 - 1)


def _milliseconds(timestamp: Timestamp) -> int:
    return timestamp.seconds * 1000 + timestamp.nanos // 1_000_000


def _timestamp(milliseconds: int) -> Timestamp:
    return Timestamp(seconds=milliseconds // 1000, nanos=milliseconds % 1000 * 1_000_000)


def _message(letter: DeadLetter) -> dead_letter_service_pb2.DeadLetter:
    message = dead_letter_service_pb2.DeadLetter(
        id=letter.id,
        message_id=letter.message_id,
        reason=letter.refusal.reason,
        status=letter.refusal.status or 0,
        detail=letter.refusal.detail,
        attempts=letter.attempts,
        accepted_at=_timestamp(letter.accepted_at),
        first_attempt_at=_timestamp(letter.first_attempt_at),
        last_attempt_at=_timestamp(letter.last_attempt_at),
    )
    try:
        message.event.CopyFrom(event_pb2.Event.FromString(letter.payload))
    except DecodeError:
        message.raw = letter.payload
    return message


def handlers(service: DeadLetterService, calls: Calls) -> grpc.GenericRpcHandler:
    """The service's methods as gRPC knows them."""
    methods = {"List": service.list, "Get": service.get, "Replay": service.replay, "Delete": service.delete}
    return grpc.method_handlers_generic_handler(
        SERVICE_NAME,
        {
            name: grpc.stream_unary_rpc_method_handler(
                unary(calls, SERVICE_NAME, name, method, largest_answer=MAX_PAGE_BYTES if name == "List" else 0)
            )
            for name, method in methods.items()
        },
    )
