"""The message_ids that the server makes."""

import time
import uuid

from service.events.message_id import derived_message_id, new_message_id


def test_a_message_id_is_a_uuid_of_version_7() -> None:
    made = uuid.UUID(new_message_id())
    assert (made.version, made.variant) == (7, uuid.RFC_4122)


def test_a_message_id_begins_with_the_milliseconds_of_its_making() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(new_message_id()).int >> 80
    assert before <= made <= time.time_ns() // 1_000_000


def test_no_two_message_ids_are_the_same() -> None:
    assert len({new_message_id() for _ in range(10_000)}) == 10_000


def test_a_derived_message_id_is_the_same_for_the_same_event_in_the_same_place_alone() -> None:
    made = uuid.UUID(derived_message_id("line 1", b"event"))
    assert (made.version, made.variant) == (8, uuid.RFC_4122)
    assert str(made) == derived_message_id("line 1", b"event")
    assert str(made) not in {derived_message_id("line 2", b"event"), derived_message_id("line 1", b"other")}
