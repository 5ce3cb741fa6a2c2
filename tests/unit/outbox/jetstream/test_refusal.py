"""The error of an acknowledgement, translated."""

import pytest

from service.errors import JetStreamError, OutboxFullError
from service.outbox.jetstream.publisher import _refusal


@pytest.mark.parametrize(
    ("number", "description"),
    [
        (10002, "resource limits exceeded for account"),
        (10023, "insufficient resources"),
        (10047, "insufficient storage resources available"),
        (10077, "maximum messages exceeded"),
        (10077, "maximum bytes exceeded"),
        (10077, "write 1.blk: no space left on device"),
        (10077, "write 1.blk: disk quota exceeded"),
    ],
)
def test_a_limit_is_a_bound(number: int, description: str) -> None:
    error = _refusal({"code": 503, "err_code": number, "description": description})
    assert isinstance(error, OutboxFullError)
    assert description in error.reason


@pytest.mark.parametrize(
    ("number", "description"),
    [(10077, "input/output error"), (10074, "replicas > 1 not supported"), (10008, "JetStream system unavailable")],
)
def test_any_other_refusal_is_none(number: int, description: str) -> None:
    error = _refusal({"code": 503, "err_code": number, "description": description})
    assert isinstance(error, JetStreamError)
    assert (error.code, error.number, error.description) == (503, number, description)


def test_a_refusal_without_a_reason_is_none() -> None:
    assert isinstance(_refusal({}), JetStreamError)
