"""Originals: the messages of which others are duplicates.

JetStream drops a duplicate with its headers, and answers with the original's sequence number.
"""

from typing import Any

from service.outbox.base import Attachment
from service.outbox.jetstream.connection import Connection
from service.outbox.jetstream.headers import ANSWER_TO, letter_of, message_id_of, parse_headers
from service.outbox.jetstream.streams import Plan


class Originals:
    """Finds originals in the two streams of an outbox."""

    def __init__(self, connection: Connection, plan: Plan) -> None:
        self._connection = connection
        self._plan = plan

    async def find(self, sequence: int, message_id: str) -> Attachment:
        """Return the state of an event that is put already.

        Its delivery is reported only if a caller waited for it when it was put.

        Args:
            sequence: of the original; a stream that was created again has another message there, or none.
            message_id: of both.

        Raises:
            OutboxUnavailableError: JetStream does not answer.
        """
        original = await self._get(self._plan.events_stream, {"seq": sequence})
        if original is not None and message_id_of(original, sequence) == message_id:
            return Attachment(is_new=False, is_pending=ANSWER_TO in original)
        letter = await self._get(self._plan.letters_stream, {"last_by_subj": self._plan.letter_subject(message_id)})
        if letter is not None and message_id_of(letter, 0) == message_id:
            return Attachment(is_new=False, is_pending=False, refusal=letter_of(0, letter, b"").refusal)
        return Attachment(is_new=False, is_pending=False)

    async def _get(self, stream: str, which: dict[str, Any]) -> dict[str, str] | None:
        """Return the headers of a message; None if it does not exist."""
        found = await self._connection.find_message(stream, which)
        return None if found is None else parse_headers(found[0])
