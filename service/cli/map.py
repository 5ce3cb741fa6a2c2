"""`map`: writes the records that a file of Segment messages maps to."""

import time
from collections.abc import Iterator
from typing import BinaryIO

from service.cli.console import say
from service.cli.input_file import OTHER_TYPES, Refused, SegmentFile, Skipped, on_one_line
from service.events.integrations import is_sent
from service.events.message import known_message_of
from service.mapping.explain import Explanation
from service.mapping.mapping import Mapping


def write_records(messages: SegmentFile, mapping: Mapping, out: BinaryIO, *, explain: bool = False) -> bool:
    """Write one record a line, in the order of the messages; messages without one are reported on standard error.

    Args:
        messages: the file.
        mapping: the mapping to apply; the time of acceptance is now.
        out: where the records go.
        explain: write below each record the origins of its parts, and the unused values of the event.

    Returns:
        Whether no message was refused.

    Raises:
        UnreadableFileError: reading the file fails halfway.
        OSError: the records cannot be written; BrokenPipeError: nobody reads them any more.
    """
    nothing_refused = True
    for message in messages:
        result = message.result
        if isinstance(result, Skipped):
            unknown = "" if result.type in OTHER_TYPES else "; Segment has no such type"
            say(f"{message.place}: skipped: {on_one_line(result.type)}{unknown}")
        elif isinstance(result, Refused):
            nothing_refused = False
            for error in result.errors:
                say(f"{message.place}: refused: {error}")
        else:
            event = result.event
            body = known_message_of(event)
            if is_sent(body.integrations):
                now = time.time_ns() // 1_000_000
                out.write(mapping.encode(event, now) + b"\n")
                if explain:
                    out.writelines(f"  {line}\n".encode() for line in _explained(mapping.explain(event, now)))
                if messages.size is None:  # a pipe may go on for days; its records should not wait for more
                    out.flush()
            else:
                say(f"{message.place}: filtered: the integrations object says no")
    out.flush()
    if (ignored := messages.ignored_line) is not None:
        say(ignored)
    return nothing_refused


def _explained(explanation: Explanation) -> Iterator[str]:
    for kind, origins in (
        ("actor", explanation.actors),
        ("label", explanation.labels),
        ("number", explanation.numbers),
    ):
        for name, origin in sorted(origins.items()):
            yield f"{kind} {on_one_line(name)} < {on_one_line(origin.path)}, {origin.row}"
    for path in explanation.unused:
        yield f"not used: {on_one_line(path)}"
