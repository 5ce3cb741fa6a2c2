"""The file of what was refused."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2
from hypothesis import given
from hypothesis import strategies as st

from pointillist_destination.v1 import event_service_pb2
from service.cli.input_file import LONGEST_LINE, Refused, SegmentFile, Source
from service.cli.send.refused import Reason, RefusedFile, Rejection
from service.errors import OutputError, SettingsError
from service.events.segment_json import import_line

REJECTION = Rejection("line 1", "m-1", "no", (Reason("track.user_id", "no"),))


def told(folder: Path, source: Source, rejection: Rejection = REJECTION) -> dict[str, Any]:
    """What one refused message is in the file."""
    path = folder / "refused.jsonl"
    path.unlink(missing_ok=True)
    with RefusedFile(path) as refused:
        refused.write(source, rejection)
    [line, rest] = path.read_bytes().split(b"\n")
    assert rest == b""
    parsed: dict[str, Any] = json.loads(line)
    return parsed


def told_of(folder: Path, content: bytes) -> list[dict[str, Any]]:
    """What the messages of a file that its reader refuses are in the file."""
    (folder / "given.jsonl").write_bytes(content)
    with SegmentFile(str(folder / "given.jsonl")) as messages:
        return [
            told(folder, message.source, Rejection.of_reader(message.place, message.result))
            for message in messages
            if isinstance(message.result, Refused)
        ]


def test_a_line_is_told_with_its_number_its_reasons_and_itself_unchanged(tmp_path: Path) -> None:
    line = '{"type": "track",  "userId": null, "note": "Žluťoučký"}'

    [found] = told_of(tmp_path, b"\n" + line.encode() + b"\n")

    assert (found["line"], found["message_id"], found["text"]) == (2, "", line)
    assert [reason["field"] for reason in found["reasons"]] == ["userId", "event"]
    assert found["reasons"][1]["description"].startswith("track without event")


def test_what_the_server_refuses_has_its_field_violations_and_without_them_its_words() -> None:
    # given
    details = error_details_pb2.BadRequest()
    details.field_violations.add(field="track.user_id", description="too long")
    rejection = event_service_pb2.Rejection(message_id="m-1")
    rejection.status.message = "track.user_id too long"
    short = Rejection.of_server("line 1", rejection)
    rejection.status.details.add().Pack(details)
    rejection.status.details.append(any_pb2.Any(type_url=rejection.status.details[0].type_url, value=b"\xff"))

    # when
    whole = Rejection.of_server("line 1", rejection)

    # then
    assert short.reasons == (Reason("", "track.user_id too long"),)
    assert whole.reasons == (Reason("track.user_id", "too long"),)
    assert str(whole) == str(short) == "line 1: m-1: track.user_id too long"


def test_a_message_of_a_batch_body_is_told_in_a_body_of_its_own_with_what_is_said_of_all(tmp_path: Path) -> None:
    body: dict[str, Any] = {
        "batch": [{"type": "track", "userId": "u", "event": "E"}, {"type": "track", "userId": "u"}],
        "context": {"ip": "8.8.8.8"},
    }

    [found] = told_of(tmp_path, json.dumps(body).encode() + b"\n")

    assert (found["line"], found["batch_index"]) == (1, 1)
    assert json.loads(found["text"]) == body | {"batch": body["batch"][1:]}


def test_a_line_that_is_not_utf_8_is_told_as_bytes(tmp_path: Path) -> None:
    [found] = told_of(tmp_path, b'{"type": "\xff"}\n')

    assert base64.b64decode(found["text_base64"]) == b'{"type": "\xff"}'
    assert "text" not in found


def test_a_line_that_is_too_long_to_be_kept_is_told_by_its_number(tmp_path: Path) -> None:
    [found] = told_of(tmp_path, b"x" * (LONGEST_LINE + 10) + b"\n")

    assert found.keys() == {"line", "message_id", "reasons"}


def test_half_a_character_is_written_as_the_escape_that_it_was(tmp_path: Path) -> None:
    rejection = Rejection("line 1", "", "no", (Reason("a", "\ud800"),))

    assert told(tmp_path, Source(1, None, b"{}"), rejection)["reasons"] == [{"field": "a", "description": "\ud800"}]


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n")))
def test_any_line_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    found = told(tmp_path_factory.getbasetemp(), Source(1, None, text.encode() + b"\n"))

    assert found.get("text") == text


@given(items=st.lists(st.dictionaries(st.text(), st.none() | st.integers() | st.text()), min_size=2), data=st.data())
def test_one_message_of_a_body_is_taken_as_it_was_among_the_others(
    tmp_path_factory: pytest.TempPathFactory, items: list[dict[str, Any]], data: st.DataObject
) -> None:
    line = json.dumps({"batch": items, "integrations": {"All": True}}).encode()
    index = data.draw(st.integers(0, len(items) - 1))

    text = told(tmp_path_factory.getbasetemp(), Source(1, index, line))["text"]

    [alone], among = import_line(text.encode()), import_line(line)[index]
    assert str(alone).replace("batch[0]", "") == str(among).replace(f"batch[{index}]", "")


def test_a_file_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("precious")

    with pytest.raises(SettingsError, match=r"--refused: .*precious holds something already"):
        RefusedFile(path)

    assert path.read_text() == "precious"


def test_an_empty_file_is_taken_as_one_that_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "refused.jsonl").touch()

    with RefusedFile(tmp_path / "refused.jsonl") as refused:
        refused.write(Source(1, None, b"{}"), REJECTION)

    assert (tmp_path / "refused.jsonl").read_text().endswith("\n")


def test_what_is_told_is_in_the_file_at_once(tmp_path: Path) -> None:
    with RefusedFile(tmp_path / "refused.jsonl") as refused:
        refused.write(Source(1, None, b"{}"), REJECTION)

        assert json.loads((tmp_path / "refused.jsonl").read_text())["line"] == 1


def test_what_a_thread_tells_after_the_end_is_no_error(tmp_path: Path) -> None:
    with RefusedFile(tmp_path / "refused.jsonl") as refused:
        pass

    refused.write(Source(1, None, b"{}"), REJECTION)

    assert (tmp_path / "refused.jsonl").read_bytes() == b""


@pytest.mark.parametrize("path", ["/nowhere/at/all", "/proc/version", "a\0b"])
def test_a_file_that_cannot_be_made_is_named(path: str) -> None:
    with pytest.raises(OutputError, match=r"--refused: .* cannot be written: "):
        RefusedFile(Path(path))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told() -> None:
    with (
        pytest.raises(OutputError, match=r"--refused: /dev/full cannot be written: No space left on device"),
        RefusedFile(Path("/dev/full")) as refused,
    ):
        refused.write(Source(1, None, b"{}"), REJECTION)
