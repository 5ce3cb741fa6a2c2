"""The flow against a simulated server, in simulated time: where does the limit settle?"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from service.relay.flow import Flow
from service.relay.retry import RetryDecision, Verdict

CEILING = 256
ROUND_TRIPS = 600  # how long a simulation lasts, in base latencies

OK = RetryDecision(Verdict.ACK, delay=0.0, slow_down=False, overload=False, reason="2xx")
UNAVAILABLE = RetryDecision(Verdict.NAK, delay=0.5, slow_down=False, overload=True, reason="503")


@dataclass(frozen=True, slots=True)
class Server:
    """A server whose latency is steady up to a knee, and rises steeply above it, where it also answers 503."""

    knee: float
    latency: float  # seconds
    is_rising: bool = True
    is_refusing: bool = True

    def answer(self, in_flight: int, chance: random.Random) -> tuple[float, RetryDecision]:
        """Seconds until the answer, and the answer."""
        excess = max(0.0, in_flight / self.knee - 1)
        seconds = self.latency * (1 + 5 * excess * self.is_rising) * chance.uniform(0.9, 1.1)
        refused = self.is_refusing and chance.random() < 2 * excess
        return seconds, UNAVAILABLE if refused else OK


def settled_limit(server: Server, seed: int = 1, observe: Callable[[float, int], None] = lambda _, __: None) -> float:
    """The limit, averaged over the second half of a simulation in which there is always something to send."""
    chance = random.Random(seed)
    flow = Flow(CEILING, chance.random, lambda _: None)
    end = ROUND_TRIPS * server.latency
    now, total, samples = 0.0, 0.0, 0
    under_way: list[tuple[float, int, float, RetryDecision]] = []
    number = 0
    while now < end:
        while len(under_way) < flow.limit(now):
            number += 1
            seconds, decision = server.answer(len(under_way) + 1, chance)
            heapq.heappush(under_way, (now + seconds, number, now, decision))
        if not under_way:
            opens_at = flow.opens_at(now)
            assert opens_at is not None
            now = opens_at
            continue
        now, _, sent_at, decision = heapq.heappop(under_way)
        flow.answered(decision, sent_at=sent_at, now=now, in_flight=len(under_way) + 1)
        observe(now, flow.target)
        if now > end / 2:
            total += flow.target
            samples += 1
    return total / samples


@pytest.mark.parametrize("latency", [0.02, pytest.param(0.1, marks=pytest.mark.long)])
@pytest.mark.parametrize("knee", [10, 40, 120])
def test_the_limit_settles_within_a_quarter_of_the_servers_knee(knee: int, latency: float) -> None:
    assert settled_limit(Server(knee, latency)) == pytest.approx(knee, rel=0.25)


@pytest.mark.parametrize("knee", [10, 40, 120])
def test_the_limit_settles_by_503s_alone(knee: int) -> None:
    assert settled_limit(Server(knee, 0.05, is_rising=False)) == pytest.approx(knee, rel=0.25)


@pytest.mark.parametrize("knee", [10, 40, 120])
def test_the_limit_settles_by_latency_alone(knee: int) -> None:
    assert settled_limit(Server(knee, 0.1, is_refusing=False)) == pytest.approx(knee, rel=0.25)


@pytest.mark.parametrize("latency", [0.02, pytest.param(0.1, marks=pytest.mark.long)])
def test_without_a_knee_the_limit_grows_to_the_ceiling(latency: float) -> None:
    assert settled_limit(Server(float("inf"), latency)) == CEILING
