"""Every error that this service raises on purpose.

    PointillistDestinationError
    ├── SettingsError           a setting, a file it names or an address cannot be used       (exit code 2)
    ├── MissingExtraError       an optional dependency is not installed                        (exit code 2)
    ├── UnreadableFileError     a file that a command was given cannot be read                (exit code 2)
    ├── OutputError             standard output, or a file to write, cannot be written        (exit code 2)
    ├── SendingError            a server does not take events, or does not answer             (exit code 2)
    ├── MappingFileError        a mapping file cannot be used                                 (exit code 2)
    ├── SegmentJsonError        a line of Segment JSON cannot be taken
    ├── EventRejectedError      an event breaks a rule, or does not parse
    └── OutboxError
        ├── OutboxUnusableError the outbox cannot be opened; the message advises              (exit code 2)
        └── OutboxUnavailableError      nothing is stored now; trying again later makes sense
            ├── OutboxFullError         a bound of the outbox, of its disk or of a stream is reached
            ├── OutboxDamagedError      a page of the file cannot be read; other events may be stored
            ├── OutboxClosedError       the outbox was closed, because the server shuts down
            └── JetStreamError          JetStream answered with an error other than such a bound

Foreign errors are translated where they enter: `outbox/sqlite/`, `outbox/jetstream/connection.py`, `pointillist/`,
`config/settings.py`.
"""

import contextlib
from collections.abc import Iterator, Sequence

EXTRAS = {"nats": {"nats", "nkeys"}, "sandbox": {"aiohttp"}}  # modules of each extra of this distribution


class PointillistDestinationError(Exception):
    """An expected error; the message says where it is, and names a valid form or a remedy."""


class SettingsError(PointillistDestinationError):
    """A setting, a file that it names or an address cannot be used."""


class MissingExtraError(PointillistDestinationError):
    """An optional dependency is not installed."""


class UnreadableFileError(PointillistDestinationError):
    """A file that a command was given cannot be read."""


class OutputError(PointillistDestinationError):
    """Standard output, or a file that a command writes, cannot be written."""


class SendingError(PointillistDestinationError):
    """Events cannot be sent to a server, or its answers do not come any more."""


@contextlib.contextmanager
def needs_extra(extra: str, purpose: str) -> Iterator[None]:
    """Import modules that need an extra of this distribution.

    Raises:
        MissingExtraError: it is not installed; the message says how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS[extra]:
            raise
        message = f'{purpose} needs {error.name}: pip install "pointillist-destination[{extra}]"'
        raise MissingExtraError(message) from error


class MappingFileError(PointillistDestinationError):
    """A mapping file cannot be used; the message names the file, the row and the expected form."""


class SegmentJsonError(PointillistDestinationError):
    """A piece of Segment JSON cannot be taken as an event.

    Args:
        path: where, in Segment's own names, such as `context.device.version`; "" for the whole message.
        reason: the error, and a valid form.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason


class EventRejectedError(PointillistDestinationError):
    """An event breaks a rule.

    Args:
        message_id: of the event; "" where it is not known.
        violations: (field, description) of each broken rule; None where the bytes are no event.
    """

    def __init__(self, message_id: str, violations: Sequence[tuple[str, str]] | None) -> None:
        super().__init__(message_id)
        self.message_id = message_id
        self.violations = violations


class OutboxError(PointillistDestinationError):
    """An error of the outbox."""


class OutboxUnusableError(OutboxError):
    """The outbox cannot be opened: held by another server, damaged, or not ours."""


class OutboxUnavailableError(OutboxError):
    """The store does not answer or refuses a write; nothing is known to be stored.

    Args:
        reason: the cause, for people.
        retry_after: seconds until trying again makes sense.
    """

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after


class OutboxFullError(OutboxUnavailableError):
    """A bound is reached: events, bytes, free space, a quota, or a stream's own limit."""


class OutboxDamagedError(OutboxUnavailableError):
    """A damaged page of the outbox file was met; what does not need that page can be stored and read."""


class OutboxClosedError(OutboxUnavailableError):
    """The outbox was closed, because the server shuts down."""


class JetStreamError(OutboxUnavailableError):
    """JetStream answered with an error other than a bound of a stream.

    Args:
        code: an HTTP-like status.
        number: JetStream's own number of the error; 0 if it has none.
        description: JetStream's words.
        retry_after: seconds until trying again makes sense.
    """

    def __init__(self, code: int, number: int, description: str, retry_after: float) -> None:
        super().__init__(f"JetStream error: {description}" + (f" ({number})" if number else ""), retry_after)
        self.code = code
        self.number = number
        self.description = description
