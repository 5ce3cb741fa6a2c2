"""The errors that callers get: a gRPC code, words, and details that a program can read.

`ErrorInfo` is in every one, `BadRequest` where fields are at fault, `RetryInfo` wherever trying again makes sense.
"""

from collections.abc import Iterable, Sequence

from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from service.errors import EventRejectedError, OutboxClosedError, OutboxFullError, OutboxUnavailableError
from service.events.contract_field import UNPARSABLE, contract_field
from service.events.validation import MAX_VIOLATIONS, Violation
from service.outbox.base import Refusal

# A client refuses trailing metadata of more than 8 kB, by default, and then sees no status of ours. In there a status
# grows by a third (base64), and its message, which is there once more, at most threefold (percent-encoding):
# 4096 * 4 / 3 + 300 * 3 is 6.4 kB.
MAX_STATUS = 4096  # bytes of a serialised google.rpc.Status
MAX_MESSAGE = 300  # bytes of its message
MAX_BAD_REQUEST = 3072  # bytes of a BadRequest, which leaves room for the other details
MAX_DESCRIPTION = 300  # bytes of one violation's description
MAX_REFUSAL = 200  # bytes of Pointillist's own words; the dead letter keeps them whole

DOMAIN = "pointillist-destination"
OVERLOAD_RETRY_DELAY = 0.5  # seconds
SHUTDOWN_RETRY_DELAY = 1.0  # seconds; by then a load balancer has found another replica, or this one is back


def cut(text: str, most_bytes: int) -> str:
    """Return the start of a text, in at most that many bytes of UTF-8; an ellipsis ends a longer one."""
    encoded = text[: most_bytes + 1].encode()
    if len(encoded) <= most_bytes:
        return text
    ellipsis = "…"
    return encoded[: most_bytes - len(ellipsis.encode())].decode(errors="ignore") + ellipsis


class StatusError(Exception):  # it is not an error of this service but an answer to a caller
    """An answer other than OK.

    Args:
        code: a code of google.rpc.Code.
        reason: the ErrorInfo's reason, in UPPER_SNAKE_CASE.
        message: words for people; cut where it is too long for a header.
        details: further details.
        metadata: of the ErrorInfo.
        retry_after: seconds until trying again makes sense; None where it does not.
    """

    fields: Sequence[str] = ()
    """Fields of the contract that are at fault."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: Iterable[Message] = (),
        metadata: dict[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        message = cut(message, MAX_MESSAGE)
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status_pb2.Status(code=code, message=message)
        for detail in (error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN, metadata=metadata or {}), *details):
            self.status.details.add().Pack(detail)
        if retry_after is not None:
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromMilliseconds(self.retry_after_ms)
            self.status.details.add().Pack(retry)

    @property
    def retry_after_ms(self) -> int:
        """Milliseconds until trying again makes sense; 0 where it does not."""
        return round((self.retry_after or 0) * 1000)


def invalid(violations: list[Violation], reason: str = "INVALID_EVENT") -> StatusError:
    """INVALID_ARGUMENT for violations of an event's fields, or a request's: as many at once as fit into an answer."""
    bad_request = error_details_pb2.BadRequest()
    for reported, (field, description) in enumerate(violations):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=field, description=cut(description, MAX_DESCRIPTION)
        )
        if bad_request.ByteSize() + violation.ByteSize() > MAX_BAD_REQUEST:
            left = len(violations) - reported
            bad_request.field_violations.add(description=f"at least {left} more, left out to keep this answer short")
            break
        bad_request.field_violations.append(violation)
    field, description = violations[0]
    message = f"{field} {description}" if field else description
    if len(violations) > 1:
        many = f"{len(violations)}" if len(violations) <= MAX_VIOLATIONS else f"more than {MAX_VIOLATIONS}"
        message = f"{many} violations; the first: {message}"
    fault = StatusError(code_pb2.INVALID_ARGUMENT, reason, message, details=[bad_request])
    fault.fields = list(dict.fromkeys(contract_field(violation.field) for violation in violations))
    return fault


def invalid_request(violations: list[Violation]) -> StatusError:
    """INVALID_ARGUMENT for fields of a request that are none of an event."""
    return invalid(violations, "INVALID_REQUEST")


def no_dead_letter(id_: int) -> StatusError:
    """NOT_FOUND for the id of a dead letter that is not there, or no more."""
    message = f"there is no dead letter {id_}; List shows those that there are"
    return StatusError(code_pb2.NOT_FOUND, "DEAD_LETTER_NOT_FOUND", message, metadata={"id": str(id_)})


def rejected(error: EventRejectedError) -> StatusError:
    """INVALID_ARGUMENT for an event that breaks a rule, or does not parse."""
    if error.violations is None:
        return unparsable("Event")
    return invalid([Violation(*violation) for violation in error.violations])


def unparsable(type_name: str) -> StatusError:
    """INVALID_ARGUMENT for bytes that are not the message they should be."""
    description = (
        f"the bytes are not a {type_name}: they are cut off, above 4 MiB, hold text that is not UTF-8, or nest deeper"
        " than protobuf reads"
    )
    bad_request = error_details_pb2.BadRequest()
    bad_request.field_violations.add(field="", description=description)
    fault = StatusError(code_pb2.INVALID_ARGUMENT, "NOT_PARSABLE", description, details=[bad_request])
    fault.fields = [UNPARSABLE]
    return fault


def outbox_unavailable(error: OutboxUnavailableError) -> StatusError:
    """UNAVAILABLE: OUTBOX_FULL, SHUTTING_DOWN where the outbox was closed, otherwise OUTBOX_UNAVAILABLE."""
    if isinstance(error, OutboxClosedError):
        return shutting_down()
    reason = "OUTBOX_FULL" if isinstance(error, OutboxFullError) else "OUTBOX_UNAVAILABLE"
    return StatusError(code_pb2.UNAVAILABLE, reason, f"not accepted: {error}", retry_after=error.retry_after)


def shutting_down(message: str = "the server is shutting down") -> StatusError:
    """UNAVAILABLE because the server ends."""
    return StatusError(code_pb2.UNAVAILABLE, "SHUTTING_DOWN", message, retry_after=SHUTDOWN_RETRY_DELAY)


def idle(seconds: float) -> StatusError:
    """UNAVAILABLE for a stream on which nothing came for long."""
    return StatusError(
        code_pb2.UNAVAILABLE, "IDLE", f"nothing came for {seconds:.0f} s; open a new stream", retry_after=0.0
    )


def too_many_calls() -> StatusError:
    """UNAVAILABLE while too many calls are being answered."""
    return StatusError(
        code_pb2.UNAVAILABLE, "TOO_MANY_CALLS", "too many calls at a time", retry_after=OVERLOAD_RETRY_DELAY
    )


def slow_request(seconds: float) -> StatusError:
    """UNAVAILABLE for a call whose request did not come."""
    message = f"the request did not come whole within {seconds:g} s, or sooner while others waited"
    return StatusError(code_pb2.UNAVAILABLE, "IDLE", message, retry_after=OVERLOAD_RETRY_DELAY)


def unread(seconds: float) -> StatusError:
    """UNAVAILABLE for a stream whose caller did not read its answers; it comes behind what had been written."""
    message = f"no answer was read for {seconds:g} s; send the unanswered batches again, with the same message_ids"
    return StatusError(code_pb2.UNAVAILABLE, "UNREAD", message, retry_after=OVERLOAD_RETRY_DELAY)


def unread_answers() -> StatusError:
    """UNAVAILABLE while too many bytes of answers are not read by their callers."""
    message = "too many answers are not read; read them, or make fewer calls at a time"
    return StatusError(code_pb2.UNAVAILABLE, "UNREAD", message, retry_after=OVERLOAD_RETRY_DELAY)


def too_many_calls_of(caller: str, most: int) -> StatusError:
    """UNAVAILABLE while a caller has as many calls as it may have at a time."""
    message = f"{caller} has {most} calls at a time, and may have no more; an operator can raise its max_calls"
    return StatusError(
        code_pb2.UNAVAILABLE, "TOO_MANY_CALLS", message, metadata={"caller": caller}, retry_after=OVERLOAD_RETRY_DELAY
    )


def too_many_watchers(most: int) -> StatusError:
    """UNIMPLEMENTED, after which clients that watch health go on without it."""
    message = f"{most} watchers of health are served already; ask with Check"
    return StatusError(code_pb2.UNIMPLEMENTED, "TOO_MANY_WATCHERS", message)


def too_many_waiting() -> StatusError:
    """UNAVAILABLE while too many calls wait for a delivery; nothing is stored."""
    message = "too many calls wait for a delivery; send without wait_for_delivery, or try again"
    return StatusError(code_pb2.UNAVAILABLE, "TOO_MANY_WAITING", message, retry_after=OVERLOAD_RETRY_DELAY)


def refused_by_pointillist(message_id: str, refusal: Refusal) -> StatusError:
    """FAILED_PRECONDITION because Pointillist will never take the event."""
    detail = cut(refusal.detail, MAX_REFUSAL)
    return StatusError(
        code_pb2.FAILED_PRECONDITION,
        "REFUSED_BY_POINTILLIST",
        f"Pointillist refused the event ({refusal.reason}): {detail}; it is a dead letter now",
        metadata={"message_id": message_id, "reason": refusal.reason, "status": str(refusal.status or "")},
    )


def deadline_passed(message_id: str) -> StatusError:
    """DEADLINE_EXCEEDED because the event was not delivered before the caller's deadline."""
    return StatusError(
        code_pb2.DEADLINE_EXCEEDED,
        "NOT_DELIVERED_YET",
        "the event is on disk and will be delivered, but was not before the deadline, or within 5 minutes",
        metadata={"message_id": message_id},
    )


def unexpected() -> StatusError:
    """INTERNAL for an error of this service; its traceback is in the log."""
    return StatusError(code_pb2.INTERNAL, "UNFORESEEN", "an unexpected error, which the server has logged")


def stream_too_old(seconds: float) -> StatusError:
    """UNAVAILABLE for a stream that has lived long enough, so that callers spread over new replicas too."""
    message = f"a stream ends after {seconds / 60:.0f} minutes; open a new one, and send the unanswered batches again"
    return StatusError(code_pb2.UNAVAILABLE, "STREAM_TOO_OLD", message, retry_after=0.0)


def no_token() -> StatusError:
    """UNAUTHENTICATED for a call without a token."""
    message = "no token: send the metadata authorization with the value 'Bearer TOKEN'"
    return StatusError(code_pb2.UNAUTHENTICATED, "NO_TOKEN", message)


def unknown_token() -> StatusError:
    """UNAUTHENTICATED for an unknown token; the message does not repeat it."""
    message = "unknown token: expected the metadata authorization with the value 'Bearer TOKEN'"
    return StatusError(code_pb2.UNAUTHENTICATED, "UNKNOWN_TOKEN", message)


def not_allowed(caller: str, path: str) -> StatusError:
    """PERMISSION_DENIED for a caller that may call other methods, but not this one."""
    message = f"{caller} may not call {path.lstrip('/')}; an operator can allow it in the callers file"
    return StatusError(code_pb2.PERMISSION_DENIED, "NOT_ALLOWED", message, metadata={"caller": caller})


def over_rate(caller: str, per_second: float, retry_after: float) -> StatusError:
    """RESOURCE_EXHAUSTED for a caller over its own rate."""
    message = f"{caller} is over its rate of {per_second:g} events a second"
    return StatusError(
        code_pb2.RESOURCE_EXHAUSTED, "OVER_RATE", message, metadata={"caller": caller}, retry_after=retry_after
    )
