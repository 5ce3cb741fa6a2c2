"""What a terminal would obey is escaped, and nothing else is changed."""

import io
import json
import unicodedata

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from service.telemetry.logs import configure_logging, flush_logs
from service.telemetry.visible_text import visible, visible_json, visible_lines

BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, ümläut, 日本\u3000語, سلام, 👩\u200d🚀", "plain, ümläut, 日本\u3000語, سلام, 👩\u200d🚀"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
        ("user\u202egpj.exe", "user\\u202egpj.exe"),
        ("one\u2028two", "one\\u2028two"),
        ("\ud800", "\\ud800"),
    ],
)
def test_controls_are_escaped_and_other_text_stays(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("\n\x1b\x9b" + BIDIRECTIONAL))))
def test_no_control_is_left_and_json_means_the_same(text: str) -> None:
    # when
    shown, lines, as_json = visible(text), visible_lines(text), visible_json(json.dumps([text], ensure_ascii=False))

    # then
    for kept in (shown, lines.replace("\n", ""), as_json):
        assert not [one for one in kept if unicodedata.category(one) in {"Cc", "Zl", "Zp", "Cs"}]
        assert not set(kept) & set(BIDIRECTIONAL)
    assert lines.count("\n") == text.count("\n")
    assert json.loads(as_json) == [text]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_log_line_stays_one_line_whatever_is_in_it(stream: io.StringIO, log_format: str) -> None:
    # given
    configure_logging("info", log_format, stream)
    value = "x\n2026-01-01 [info] forged\x1b[2J\u202e"

    # when
    structlog.get_logger().info("call", message_id=value)
    try:
        raise ValueError(value)  # noqa: TRY301  its traceback is what is looked at
    except ValueError:
        structlog.get_logger().exception("failed")
    flush_logs()

    # then
    written = stream.getvalue()
    assert "\x1b" not in written
    assert "\u202e" not in written
    first, *_ = written.splitlines()
    assert "forged" in first
    assert "Traceback" in written
