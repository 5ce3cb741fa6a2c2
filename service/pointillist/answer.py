"""The answer to a POST: a status, or a failure before there was one."""

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum

BODY_START = 1_000  # characters of an answer's body that are kept for a dead letter
LONGEST_WAIT = 2.0**31  # seconds; RFC 9111 lets a reader use this for a number that is too large for it


class Failure(StrEnum):
    """The reason that there was no complete response header; each may pass, so each is tried again."""

    REFUSED = "refused"
    """Nothing listens at the address."""
    RESET = "reset"
    """The connection broke before the header was complete."""
    DNS = "dns"
    """The host's name could not be resolved."""
    TIMEOUT = "timeout"
    """No complete header came within the request timeout, connecting included."""
    TRUNCATED = "truncated"
    """The server closed the connection before the header was complete, perhaps before its first byte."""
    TLS = "tls"
    """The TLS handshake failed: a certificate that is not trusted, or no TLS at the other end."""
    OTHER = "other"
    """Anything else, such as a header that is not HTTP, or a request that could not be made."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one POST; either `status` or `failure` is set, never both.

    Attributes:
        status: the HTTP status of a complete response header.
        failure: why there is none.
        retry_after: seconds from now that the server asks us to wait, never negative; None where it does not say.
        body_start: the start of the body as text, `BODY_START` characters at most; "" for 2xx.
        detail: for a failure, a short text for people; never holds the token.
    """

    status: int | None = None
    failure: Failure | None = None
    retry_after: float | None = None
    body_start: str = ""
    detail: str = ""


def retry_after_seconds(retry_after: str | None, date: str | None) -> float | None:
    """Read a Retry-After header as seconds from now, as RFC 9110 section 10.2.3 defines it: a number or a date.

    A date is taken relative to the answer's own Date header where that can be read, so that a server whose clock is
    off still gets the pause it means; else relative to the local clock.

    Args:
        retry_after: the header's value, None where there is none.
        date: the value of the Date header, None where there is none.

    Returns:
        Seconds between 0 and `LONGEST_WAIT`; None where there is no header or it cannot be read.
    """
    if retry_after is None:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), LONGEST_WAIT)
    until = _http_date(text)
    if until is None:
        return None
    now = _http_date(date or "") or datetime.now(UTC)
    return min(max((until - now).total_seconds(), 0.0), LONGEST_WAIT)


def _http_date(text: str) -> datetime | None:
    """Read an HTTP date in any of its three forms; None where the text is none of them."""
    try:
        parsed = parsedate_to_datetime(text)
    except (
        ValueError,
        TypeError,
        IndexError,
        OverflowError,
    ):  # errors that the parser lets through, by version and by input
        return None
    # Only the asctime form comes without a zone, and HTTP dates are always in UTC.
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
