"""What libraries write to standard error by themselves is counted, and never repeated."""

import sys
import threading
import traceback

import structlog

from service.telemetry.standard_error import INTERVAL, LibraryOutput, without_library_output


def test_there_is_one_line_a_second_that_says_how_much_was_left_out() -> None:
    # given
    now = 100.0
    stream = LibraryOutput(lambda: now)

    # when
    with structlog.testing.capture_logs() as logged:
        stream.write("secret")
        stream.write("secret")
        stream.write("secret")
        now += INTERVAL
        stream.write("s")

    # then
    assert [line["count"] for line in logged] == [6, 13]
    assert "secret" not in repr(logged)


def test_a_traceback_that_a_library_prints_is_left_out_and_the_end_of_a_thread_is_logged() -> None:
    # given
    earlier = sys.stderr

    def fail() -> None:
        raise ValueError("of ours")

    # when
    with structlog.testing.capture_logs() as logged, without_library_output():
        try:
            int("secret")
        except ValueError:
            traceback.print_exc()
        thread = threading.Thread(target=fail, name="a-thread")
        thread.start()
        thread.join()

    # then
    assert sys.stderr is earlier
    assert "secret" not in repr(logged)
    [ended] = [line for line in logged if line["log_level"] == "error"]
    assert ended["thread"] == "a-thread"
    assert ended["exc_info"][0] is ValueError
