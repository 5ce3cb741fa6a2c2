"""Callers: what a callers file may say, whose token it is, what they may call, and how often."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from google.rpc import code_pb2, error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from service.errors import SettingsError
from service.intake.callers import Callers, read_callers, watch_callers
from service.intake.token_bucket import TokenBucket
from service.server.auth import Admission, Authenticator, authorized
from service.server.status import StatusError

TOKEN = "a-token-of-checkout"
OTHER = "a-token-of-billing"
TRACK = "/pointillist_destination.v1.EventService/Track"
LIST = "/pointillist_destination.v1.DeadLetterService/List"


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


CHECKOUT = f'[callers.checkout]\nsha256 = "{digest(TOKEN)}"\n'


def refusal(text: str) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        read_callers(text)
    return str(caught.value)


# -- what a file may say


def test_a_caller_may_call_the_event_service_alone_unless_the_file_says_more() -> None:
    caller = read_callers(CHECKOUT).find(TOKEN)
    assert caller is not None
    assert caller.name == "checkout"
    assert {path.rpartition("/")[2] for path in caller.methods} == {"Track", "Identify", "BatchSend"}
    assert caller.events_per_second is None


def test_methods_are_services_or_single_ones() -> None:
    caller = read_callers(CHECKOUT + 'methods = ["EventService/Track", "DeadLetterService"]').find(TOKEN)
    assert caller is not None
    assert {path.rpartition(".")[2] for path in caller.methods} == {
        "EventService/Track",
        "DeadLetterService/List",
        "DeadLetterService/Get",
        "DeadLetterService/Replay",
        "DeadLetterService/Delete",
    }


def test_the_burst_is_one_seconds_worth_unless_the_file_says_otherwise() -> None:
    usual = read_callers(CHECKOUT + "events_per_second = 50").find(TOKEN)
    slow = read_callers(CHECKOUT + "events_per_second = 0.1").find(TOKEN)
    chosen = read_callers(CHECKOUT + "events_per_second = 50\nburst = 7").find(TOKEN)
    assert [one and one.burst for one in (usual, slow, chosen)] == [50.0, 1.0, 7.0]


def test_both_tokens_are_right_while_one_is_being_changed() -> None:
    callers = read_callers(f'[callers.checkout]\nsha256 = ["{digest(TOKEN)}", "{digest(OTHER).upper()}"]')
    assert [callers.find(token) is not None for token in (TOKEN, OTHER, "else", "")] == [True, True, False, False]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names nobody"),
        ("callers = 5", "names nobody"),
        ("[callers]", "names nobody"),
        ("[callers", "is not TOML"),
        (CHECKOUT + "[caller.x]\n", "caller: there is no such key"),
        ("[callers]\ncheckout = 5", "callers.checkout: expected a table"),
        ("[callers.checkout]", "[callers.checkout] sha256: expected the 64 hexadecimal digits"),
        ("[callers.checkout]\nsha256 = []", "sha256sum makes them"),
        (f'[callers."a b"]\nsha256 = "{digest(TOKEN)}"', "[callers.a b]: a name is 1 to 64"),
        (CHECKOUT + "method = []", "[callers.checkout] method: there is no such key; the nearest is methods"),
        (CHECKOUT + 'methods = "EventService"', "[callers.checkout] methods: expected a list"),
        (CHECKOUT + 'methods = ["EventServices"]', "there is no 'EventServices'; the nearest is 'EventService'"),
        (CHECKOUT + 'methods = ["EventService/Trak"]', "the nearest is 'EventService/Track'"),
        (CHECKOUT + 'methods = ["EventService/"]', "there is no 'EventService/'"),
        (CHECKOUT + "events_per_second = 0", "events_per_second: expected a number of events above 0"),
        (CHECKOUT + "events_per_second = true", "events_per_second: expected a number"),
        (CHECKOUT + "events_per_second = nan", "events_per_second: expected a number"),
        (CHECKOUT + "events_per_second = 5\nburst = 0.5", "burst: expected a number of events from 1"),
        (CHECKOUT + "max_calls = 0", "max_calls: expected a whole number of calls at a time from 1"),
        (CHECKOUT + "max_calls = 2.5", "max_calls: expected a whole number"),
        (CHECKOUT + "burst = 5", "burst: says nothing without events_per_second"),
        (CHECKOUT + f'[callers.billing]\nsha256 = "{digest(TOKEN)}"', "it is that of checkout too"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_what_would_be_right(text: str, said: str) -> None:
    assert said in refusal(text)


def test_all_faults_are_told_at_once() -> None:
    said = refusal("[callers.a]\n[callers.b]\nrate = 1\n").splitlines()
    assert [line.split()[0] for line in said] == ["[callers.a]", "[callers.b]", "[callers.b]"]


def test_a_token_in_place_of_its_hash_is_not_repeated() -> None:
    said = refusal(f'[callers.checkout]\nsha256 = "{TOKEN}"')
    assert TOKEN not in said


def test_neither_callers_nor_a_caller_show_a_hash() -> None:
    callers = read_callers(CHECKOUT)
    assert digest(TOKEN) not in repr(callers) + repr(callers.find(TOKEN))
    assert repr(bytes.fromhex(digest(TOKEN))) not in repr(callers) + repr(callers.find(TOKEN))


@given(st.text())
def test_no_text_but_the_token_is_taken_for_it(text: str) -> None:
    assert (read_callers(CHECKOUT).find(text.encode(errors="replace").decode()) is not None) == (text == TOKEN)


@given(st.text(max_size=200))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    try:
        read_callers(text)
    except ValueError as error:
        assert str(error)  # noqa: PT017  # a text may be right too


# -- the file


def test_a_changed_file_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "callers.toml"
    path.write_text(CHECKOUT)
    file = watch_callers(path)
    assert not file.has_changed()
    path.write_text(CHECKOUT.replace(digest(TOKEN), digest(OTHER)) + "\n")
    assert file.has_changed()
    assert file.reload()
    assert file.current().find(TOKEN) is None
    assert file.current().find(OTHER) is not None


@pytest.mark.parametrize("content", [b"[callers", b"\xff", None])
def test_a_bad_new_file_leaves_the_old_callers_in_force(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "callers.toml"
    path.write_text(CHECKOUT)
    file = watch_callers(path)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert file.has_changed()
    assert not file.reload()
    assert file.problem is not None
    assert file.problem.startswith(f"POINTILLIST_CALLERS_FILE: {path}")
    assert file.current().find(TOKEN) is not None


def test_a_bad_file_at_start_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "callers.toml").write_text("[callers.a]\n[callers.b]\n")
    with pytest.raises(SettingsError) as caught:
        watch_callers(tmp_path / "callers.toml")
    lines = str(caught.value).splitlines()
    assert [line.startswith(f"POINTILLIST_CALLERS_FILE: {tmp_path}/callers.toml: [callers.") for line in lines] == [
        True,
        True,
    ]


# -- the rate


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_passes_and_then_as_many_as_flow_in() -> None:
    clock = Hand()
    bucket = TokenBucket(10.0, 3.0, clock)
    assert [bucket.take() for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take() == pytest.approx(0.1)
    clock.now += 0.1001
    assert bucket.take() == 0.0
    assert bucket.take() > 0


def test_a_batch_overdraws_and_is_paid_back_by_time() -> None:
    clock = Hand()
    bucket = TokenBucket(10.0, 5.0, clock)
    assert bucket.debt() == 0.0
    bucket.charge(25)
    assert bucket.debt() == pytest.approx(2.0)
    assert bucket.take() == pytest.approx(2.1)
    clock.now += 2.0
    assert bucket.debt() == pytest.approx(0.0, abs=1e-9)


@given(
    st.floats(0.01, 1e6),
    st.floats(1.0, 1e4),
    st.lists(st.tuples(st.floats(0, 10), st.integers(1, 20)), max_size=50),
)
def test_no_more_passes_than_the_burst_and_what_flowed_in(
    per_second: float, burst: float, steps: list[tuple[float, int]]
) -> None:
    clock = Hand()
    bucket = TokenBucket(per_second, burst, clock)
    passed = 0
    for pause, tries in steps:
        clock.now += pause
        passed += sum(bucket.take() == 0.0 for _ in range(tries))
    assert passed <= burst + (clock.now - 1000.0) * per_second + 1e-3


# -- the gate


def authenticator(callers: Callers, clock: Hand | None = None) -> tuple[Authenticator, list[str]]:
    counted: list[str] = []
    return Authenticator(lambda: callers, clock or Hand(), counted.append), counted


def admit(door: Authenticator, metadata: Sequence[tuple[str, str]], path: str) -> Admission:
    """Authenticate and authorize a call."""
    return authorized(door.identify(metadata), path)


def reason(fault: StatusError) -> str:
    info = error_details_pb2.ErrorInfo()
    assert fault.status.details[0].Unpack(info)
    return str(info.reason)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "NO_TOKEN"),
        ("", "UNKNOWN_TOKEN"),
        (TOKEN, "UNKNOWN_TOKEN"),
        (f"Basic {TOKEN}", "UNKNOWN_TOKEN"),
        (f"Bearer {OTHER}", "UNKNOWN_TOKEN"),
        ("Bearer ", "UNKNOWN_TOKEN"),
    ],
)
def test_without_a_right_token_nobody_is_let_in(value: str | None, expected: str) -> None:
    door, counted = authenticator(read_callers(CHECKOUT))
    with pytest.raises(StatusError) as caught:
        admit(door, () if value is None else (("authorization", value),), TRACK)
    assert (caught.value.status.code, reason(caught.value)) == (code_pb2.UNAUTHENTICATED, expected)
    assert OTHER not in caught.value.status.message
    assert counted == []


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_right_token_is_let_in(scheme: str) -> None:
    door, counted = authenticator(read_callers(CHECKOUT))
    admission = admit(door, (("user-agent", "x"), ("authorization", f"{scheme} {TOKEN}")), TRACK)
    assert (admission.caller, admission.bucket) == ("checkout", None)
    assert counted == ["checkout"]


def test_a_known_caller_is_not_let_in_where_it_is_not_allowed() -> None:
    door, _ = authenticator(read_callers(CHECKOUT))
    with pytest.raises(StatusError) as caught:
        admit(door, (("authorization", f"Bearer {TOKEN}"),), LIST)
    assert (caught.value.status.code, reason(caught.value)) == (code_pb2.PERMISSION_DENIED, "NOT_ALLOWED")


def test_all_calls_of_a_caller_share_its_rate_until_the_file_gives_it_another() -> None:
    current = [read_callers(CHECKOUT + "events_per_second = 5")]
    door = Authenticator(lambda: current[0], Hand(), lambda _: None)
    metadata = (("authorization", f"Bearer {TOKEN}"),)
    first = admit(door, metadata, TRACK).bucket
    assert first is not None
    assert admit(door, metadata, TRACK).bucket is first
    current[0] = read_callers(CHECKOUT + "events_per_second = 5\n")
    assert admit(door, metadata, TRACK).bucket is first
    current[0] = read_callers(CHECKOUT + "events_per_second = 6")
    assert admit(door, metadata, TRACK).bucket is not first
