"""The composition root: build the parts, start them, and on a signal drain and stop them in order."""

import asyncio
import contextlib
import random
import signal
from collections.abc import Callable

import structlog
import uvloop

from service import dead_letter_service, event_service
from service.clock import SystemClock
from service.dead_letter_service import DeadLetterService
from service.deliveries import Deliveries
from service.event_service import EventService
from service.flow import Flow, State
from service.health import Health
from service.mapping_source import MappingSource
from service.outbox.room import Bounds
from service.outbox.sqlite import SqliteOutbox
from service.pointillist import connect
from service.relay import Relay
from service.rpc import Calls
from service.server import listen, make_health_server, make_server
from service.settings import Listen, Settings, TokenSource, effective
from service.telemetry import Metrics, start_metrics_server

RELOAD_INTERVAL = 1.0  # seconds between looks at the files that may change
LAST_ANSWERS_GRACE = 0.5  # seconds for the last answers to leave, after their calls have ended

log = structlog.get_logger()


class App:
    """One server, from its settings."""

    def __init__(self, settings: Settings) -> None:
        """Read what can be read before anything runs.

        Raises:
            SettingsError: the token or an address cannot be used.
            MappingFileError: the mapping file cannot be used.
        """
        self._settings = settings
        self._token: TokenSource = settings.require_token()
        self._mapping = MappingSource(settings.mapping_file)
        self._stop = asyncio.Event()
        self._hangup = asyncio.Event()
        self.grpc_listen: Listen | None = None
        """Where events are taken in, once it serves."""

    def stop(self) -> None:
        """Begin to stop; a second call cuts the shutdown delay short."""
        self._stop.set()

    async def run(self, started: Callable[["App"], None] = lambda _: None) -> None:
        """Serve until `stop`.

        Raises:
            SettingsError: an address cannot be listened on.
            OutboxUnusableError: the outbox cannot be opened.
        """
        settings, clock, metrics = self._settings, SystemClock(), Metrics()
        log.info("settings", **effective(settings))
        async with contextlib.AsyncExitStack() as stack:
            outbox = SqliteOutbox(
                settings.outbox_path,
                clock=clock,
                window=settings.duplicate_window,
                window_ids=settings.duplicate_ids,
                retry_max_delay=settings.retry_max_delay,
                bounds=Bounds(settings.outbox_max_events, settings.outbox_max_bytes, settings.disk_free_floor),
            )
            stack.push_async_callback(outbox.close)
            pointillist = connect(
                client=settings.http_client,
                url=settings.api_url,
                token=self._token.current,
                timeout=settings.request_timeout,
                max_connections=settings.max_concurrency,
                ca_file=settings.api_ca_file,
                proxy=settings.api_proxy,
            )
            stack.push_async_callback(pointillist.close)
            deliveries = Deliveries()
            flow = Flow(settings.max_concurrency, random.random, lambda flow: _tell(flow, metrics))
            relay = Relay(
                outbox=outbox,
                mapping=self._mapping.current,
                pointillist=pointillist,
                flow=flow,
                deliveries=deliveries,
                metrics=metrics,
                clock=clock,
                random=random.random,
                max_age=settings.max_age,
                retry_max_delay=settings.retry_max_delay,
                dead_letters_most=settings.dead_letter_max_events,
            )
            _observe(metrics, outbox, relay, flow, clock)
            service = EventService(
                outbox=outbox, mapping=self._mapping.current, deliveries=deliveries, metrics=metrics, clock=clock
            )
            health = Health(is_ready=lambda: outbox.full() is None, is_getting_through=lambda: flow.is_getting_through)
            calls = Calls()
            dead_letters = DeadLetterService(outbox=outbox, mapping=self._mapping.current)
            server = make_server(
                [event_service.handlers(service, calls), dead_letter_service.handlers(dead_letters, calls)],
                [event_service.SERVICE_NAME, dead_letter_service.SERVICE_NAME],
                health,
                reflect=settings.reflection,
            )
            stack.push_async_callback(server.stop, LAST_ANSWERS_GRACE)
            self.grpc_listen = listen(server, "POINTILLIST_GRPC_LISTEN", settings.grpc_listen)
            metrics_server = start_metrics_server(settings.metrics_listen, metrics)
            stack.callback(metrics_server.stop)
            if settings.health_listen is not None:
                health_server = make_health_server(health)
                stack.push_async_callback(health_server.stop, 0)
                health_listen = listen(health_server, "POINTILLIST_HEALTH_LISTEN", settings.health_listen)
                await health_server.start()
                log.info("health is served alone", address=str(health_listen))

            relaying = asyncio.create_task(relay.run())
            watching = [asyncio.create_task(health.run()), asyncio.create_task(self._reload(flow, relay, metrics))]
            await health.look()
            await server.start()
            log.info("serving", address=str(self.grpc_listen), metrics=str(metrics_server.listen or "off"))
            started(self)
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait({stopping, relaying, *watching}, return_when=asyncio.FIRST_COMPLETED)

            log.info("stopping", delay=settings.shutdown_delay, grace=settings.shutdown_grace)
            await health.drain()
            await self._delay()
            service.drain()
            await asyncio.gather(calls.ended(settings.shutdown_grace), relay.stop(settings.shutdown_grace))
            await server.stop(LAST_ANSWERS_GRACE)
            for task in (stopping, *watching):
                task.cancel()
            for task in (relaying, *watching):
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        log.info("stopped", waiting=outbox.stats().events, dead_letters=outbox.stats().dead_letters)

    async def _delay(self) -> None:
        """Serve on while load balancers learn that this server goes; a second signal ends the wait."""
        self._stop.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), self._settings.shutdown_delay)

    def reload(self) -> None:
        """Read the files again now that settings name: the token and the mapping."""
        self._hangup.set()

    async def _reload(self, flow: Flow, relay: Relay, metrics: Metrics) -> None:
        """Take up a token and a mapping that changed, and such as an operator asks for."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hangup.wait(), RELOAD_INTERVAL)
            is_asked = self._hangup.is_set()
            self._hangup.clear()
            self._reload_token(flow, relay, is_asked=is_asked)
            if is_asked or self._mapping.has_changed():
                taken_up = self._mapping.reload()
                metrics.mapping_reloads["taken_up" if taken_up else "refused"].inc()
                if taken_up:
                    log.info("the mapping was read again")
                    flow.probe_now()
                    relay.look()
                else:
                    log.error("the mapping file is refused; the old mapping stays in force", why=self._mapping.problem)

    def _reload_token(self, flow: Flow, relay: Relay, *, is_asked: bool) -> None:
        problem = self._token.problem
        changed = self._token.reload()
        if changed:
            log.info("the API token changed")
        if changed or is_asked:
            flow.probe_now()
            relay.look()
        if self._token.problem and self._token.problem != problem:
            log.warning("the API token could not be read again", why=self._token.problem)


def _tell(flow: Flow, metrics: Metrics) -> None:
    """Say in the log and the metrics that the relay's state changed."""
    metrics.relay_state.state(flow.state.value)
    if flow.state is State.FLOWING:
        log.info("relay flows")
    elif flow.cause is not None:
        metrics.pauses[flow.cause.value].inc()
        log.warning("relay does not flow", state=flow.state.value, cause=flow.cause.value, answer=flow.answer)


def _observe(metrics: Metrics, outbox: SqliteOutbox, relay: Relay, flow: Flow, clock: SystemClock) -> None:
    """Have the gauges ask the parts whenever they are read."""
    metrics.outbox_events.set_function(lambda: outbox.stats().events)
    metrics.outbox_bytes.set_function(lambda: outbox.stats().bytes)
    metrics.dead_letters.set_function(lambda: outbox.stats().dead_letters)
    metrics.outbox_commits.set_function(lambda: outbox.commits)
    metrics.outbox_committed_events.set_function(lambda: outbox.committed_events)
    metrics.duplicate_evictions.set_function(lambda: outbox.evictions)
    metrics.concurrency_limit.set_function(lambda: flow.target)
    metrics.in_flight.set_function(lambda: relay.in_flight)

    def oldest_age() -> float:
        oldest_at = outbox.stats().oldest_at
        return 0.0 if oldest_at is None else max(0.0, clock.wall() - oldest_at / 1000)

    metrics.outbox_oldest_age.set_function(oldest_age)


def serve(settings: Settings, started: Callable[[App], None] = lambda _: None) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads the token and the mapping again."""

    async def run() -> None:
        app = App(settings)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, app.stop)
        loop.add_signal_handler(signal.SIGHUP, app.reload)
        await app.run(started)

    uvloop.run(run())
