"""gRPC health: four names, each with a truth of its own.

    "" and EventService   SERVING while new events can be accepted
    liveness              SERVING while the process works; once it does not, only a restart helps
    delivery              SERVING while the relay is getting through to Pointillist

An outage at Pointillist alone never fails readiness: the outbox exists to accept events meanwhile.

A replica that only accepts knows no `delivery`, and one that only relays no EventService (a check of such a name is
answered NOT_FOUND): it would be a guess, or never change. `""` of the latter is SERVING while it can reach the outbox.
"""

import asyncio
from collections.abc import Callable

import structlog
from grpc_health.v1 import health_pb2

from service.server.event_service import SERVICE_NAME

INTERVAL = 0.2  # seconds between updates
LIVENESS = "liveness"
DELIVERY = "delivery"
NAMES = ("", SERVICE_NAME, LIVENESS, DELIVERY)

log = structlog.get_logger()


class Health:
    """The health of one server."""

    def __init__(
        self,
        *,
        why_dead: Callable[[], str | None],
        why_not_ready: Callable[[], str | None],
        is_getting_through: Callable[[], bool] | None,
        accepts: bool = True,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Create it; every name is NOT_SERVING until `run`.

        Args:
            why_dead: returns the reason that the process must be restarted; None while it works.
            why_not_ready: returns the reason that the server cannot do its part; None while it can. That is to accept
                events or, in a role that accepts none, to reach the outbox.
            is_getting_through: returns True while the relay gets through to Pointillist; None without a relay.
            accepts: the server accepts events.
            beat: called at each update, to show that they go on.
        """
        self._why_dead = why_dead
        self._why_not_ready = why_not_ready
        self._is_getting_through = is_getting_through
        self._readiness = ("", SERVICE_NAME) if accepts else ("",)
        self._beat = beat
        self._draining = False
        self._changed: asyncio.Future[None] | None = None
        names = (*self._readiness, LIVENESS, *(() if is_getting_through is None else (DELIVERY,)))
        self.statuses: dict[str, int] = dict.fromkeys(names, health_pb2.HealthCheckResponse.NOT_SERVING)
        """The status of each name that this server knows."""
        self._shown: dict[str, bool] = {}

    def status(self, name: str | None) -> int | None:
        """Return the status of a name; None for one that this server does not know."""
        return None if name is None else self.statuses.get(name)

    async def changed(self) -> None:
        """Return at the next change of any status."""
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._changed)

    async def run(self) -> None:
        """Update all names until cancelled."""
        while True:
            self.refresh()
            self._beat()
            await asyncio.sleep(INTERVAL)

    def refresh(self) -> None:
        """Update all names now."""
        why_dead = self._why_dead()
        self._show(LIVENESS, serving=why_dead is None, why=why_dead or "")
        why_not = "the server is shutting down" if self._draining else self._why_not_ready()
        for name in self._readiness:
            self._show(name, serving=why_not is None, why=why_not or "")
        if self._is_getting_through is not None:
            self._show(DELIVERY, serving=self._is_getting_through(), why="Pointillist takes no events")

    def drain(self) -> None:
        """Turn readiness off for good: the server is about to stop."""
        self._draining = True
        self.refresh()

    def _show(self, name: str, *, serving: bool, why: str = "") -> None:
        if self._shown.get(name) == serving:
            return
        if name and not serving:
            report = log.info if self._draining else log.warning  # that it ends is no cause for alarm
            report("health changed", name=name, serving=False, why=why)
        elif name and name in self._shown:
            log.info("health changed", name=name, serving=True)
        self._shown[name] = serving
        response = health_pb2.HealthCheckResponse
        self.statuses[name] = response.SERVING if serving else response.NOT_SERVING
        if self._changed is not None:
            self._changed.set_result(None)
            self._changed = None
