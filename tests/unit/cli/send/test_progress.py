"""How fast a file is sent, and how long the rest takes."""

from hypothesis import given
from hypothesis import strategies as st

from service.cli.send.progress import WINDOW, Pace

STEPS = st.lists(
    st.tuples(st.floats(0.01, 100), st.integers(0, 100_000), st.integers(0, 10_000_000)), min_size=1, max_size=50
)


def test_the_rate_the_share_and_the_time_left_follow_from_what_was_done() -> None:
    pace = Pace(1000, 5.0)

    pace.sample(15.0, 2000, 250)

    assert (pace.rate, pace.share, pace.seconds_left) == (200.0, 0.25, 30.0)
    assert pace.words() == "25 %, 2,000 events, 200 events/s, 30 s left"


def test_of_a_pipe_neither_the_share_nor_the_time_left_is_known() -> None:
    pace = Pace(None, 0.0)

    pace.sample(10.0, 2000, 250)

    assert (pace.share, pace.seconds_left) == (None, None)
    assert pace.words() == "2,000 events, 200 events/s"


def test_only_what_was_done_of_late_counts_so_that_a_stall_shows() -> None:
    # given a minute at full speed
    pace = Pace(10_000, 0.0)
    for second in range(1, 61):
        pace.sample(float(second), second * 100, second * 10)

    # when nothing more comes
    for second in range(61, 100):
        pace.sample(float(second), 6000, 600)

    # then
    assert (pace.rate, pace.seconds_left) == (0.0, None)
    assert pace.words() == "6 %, 6,000 events, 0 events/s"


def test_long_times_are_said_in_minutes_and_hours() -> None:
    pace = Pace(3600 + 300 + 40 + 1, 0.0)
    pace.sample(1.0, 1, 1)
    assert pace.words().endswith("1 h 5 min left")

    pace.sample(10.0, 1, 3600)
    assert pace.words().endswith("1 s left")

    pace = Pace(101, 0.0)
    pace.sample(1.0, 1, 1)
    assert pace.words().endswith("1 min 40 s left")


def test_a_file_that_grew_or_is_empty_is_never_read_by_more_than_the_whole() -> None:
    grown, empty = Pace(100, 0.0), Pace(0, 0.0)

    grown.sample(1.0, 10, 150)
    empty.sample(1.0, 0, 0)

    assert (grown.share, grown.seconds_left, empty.share) == (1.0, 0.0, 1.0)


@given(STEPS)
def test_whatever_the_samples_the_rate_lies_between_the_slowest_and_the_fastest_step(
    steps: list[tuple[float, int, int]],
) -> None:
    pace, now, events, position = Pace(10_000_000, 0.0), 0.0, 0, 0
    for seconds, more_events, more_bytes in steps:
        now, events, position = now + seconds, events + more_events, position + more_bytes
        pace.sample(now, events, position)

    rates = [more / seconds for seconds, more, _ in steps]
    assert min(rates) * (1 - 1e-6) <= pace.rate <= max(rates) * (1 + 1e-6)
    assert pace.seconds_left is None or pace.seconds_left >= 0
    assert len(pace._samples) <= WINDOW / 0.01 + 2
