"""An event as the record that Pointillist is sent for it.

The table of Segment's page about its Pointillist destination names the places; it is in mapping.toml, and an
operator's own file can take its place. A mapping is total: it makes a record of every event that parses, whatever
is in it. It is pure: the same event, accepted at the same moment, always gives the same bytes.
"""

from typing import TypeAlias

import orjson

from pointillist_destination.v1 import event_pb2, record_pb2
from service.mapping.event_time import event_moment, time_writer
from service.mapping.explain import Explanation, explain
from service.mapping.plan import Plan
from service.mapping.rules import Rules

IDENTIFY = "identify"  # the eventType of an identify

_Message: TypeAlias = event_pb2.Identify | event_pb2.Track


class Mapping:
    """Rules, compiled: immutable, and safe to use from many threads."""

    def __init__(self, rules: Rules) -> None:
        """Compile rules that have been found to be right (see mapping_file)."""
        self._rules = rules
        self._track = Plan(event_pb2.Track.DESCRIPTOR, rules.track, rules.actor_class)
        self._identify = Plan(event_pb2.Identify.DESCRIPTOR, rules.identify, rules.actor_class)
        self._write_time = time_writer(rules.time_format)
        self._numbers_as_json = rules.numbers == "json"
        self._start = b'{"eventSource":' + orjson.dumps(rules.event_source) + b',"eventType":'

    def encode(self, event: event_pb2.Event, accepted_at: int) -> bytes:
        """The body of the POST: the record as compact JSON in UTF-8.

        Its keys are in the order of the wire's example, those of labels and numbers sorted by code point, so that
        equal events give equal bytes.

        Args:
            event: the event.
            accepted_at: when the service took the event, in milliseconds since the epoch.
        """
        message, plan = self._message_and_plan(event)
        labels, numbers = plan.labels_and_numbers(message)
        written = {name: orjson.Fragment(text) for name, text in numbers.items()} if self._numbers_as_json else numbers
        return b"".join(
            (
                self._start,
                orjson.dumps(_event_type(message)),
                b',"eventTime":',
                orjson.dumps(self._event_time(message, accepted_at)),
                b',"actors":',
                orjson.dumps(plan.actors(message)),
                b',"labels":',
                orjson.dumps(labels, option=orjson.OPT_SORT_KEYS),  # by code point
                b',"numbers":',
                orjson.dumps(written, option=orjson.OPT_SORT_KEYS),
                b"}",
            )
        )

    def record(self, event: event_pb2.Event, accepted_at: int) -> record_pb2.Record:
        """The record as the contract's message; its numbers are decimal strings, whatever the rules say.

        Args:
            event: the event.
            accepted_at: when the service took the event, in milliseconds since the epoch.
        """
        message, plan = self._message_and_plan(event)
        labels, numbers = plan.labels_and_numbers(message)
        record = record_pb2.Record(
            event_source=self._rules.event_source,
            event_type=_event_type(message),
            event_time=self._event_time(message, accepted_at),
            labels=labels,
            numbers=numbers,
        )
        record.actors.update(plan.actors(message))
        return record

    def explain(self, event: event_pb2.Event, accepted_at: int) -> Explanation:
        """Return the origin of each part of the record, and the values of the event that are in no part of it.

        Args:
            event: the event.
            accepted_at: when the service took the event, in milliseconds since the epoch.
        """
        message, plan = self._message_and_plan(event)
        rows = self._rules.track if plan is self._track else self._rules.identify
        return explain(plan, rows, message, accepted_at)

    def describe(self) -> str:
        """The rules in force, as the text of a mapping file that says the same."""
        return self._rules.as_toml()

    def _message_and_plan(self, event: event_pb2.Event) -> tuple[_Message, Plan]:
        """Return the message in an event and its plan; an event without one is an empty identify."""
        if event.HasField("track"):
            return event.track, self._track
        return event.identify, self._identify

    def _event_time(self, message: _Message, accepted_at: int) -> str:
        return self._write_time(event_moment(message, accepted_at)[0])


def _event_type(message: _Message) -> str:
    return message.event if isinstance(message, event_pb2.Track) else IDENTIFY
