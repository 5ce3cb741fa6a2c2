"""The composition root: build the parts, start them, and on a signal drain and stop them in order."""

import asyncio
import contextlib
import itertools
import os
import random
import signal
from collections.abc import Callable
from typing import Protocol
from urllib.parse import urlsplit

import structlog
import uvloop

from service.clock import Clock, SystemClock
from service.config.role import Role
from service.config.settings import Listen, Settings, TokenSource, effective
from service.errors import OutboxUnavailableError
from service.intake.callers import CallersFile
from service.outbox.base import DeadLetterFilter, OpenOutbox
from service.outbox.deliveries import DeliveryWaiters
from service.outbox.factory import check_role, open_outbox
from service.relay.factory import make_sender
from service.relay.flow import Cause, Flow, State
from service.relay.relay import Relay
from service.relay.worker_pool import WorkerPool
from service.reloader import MappingSource
from service.server import dead_letter_service, event_service
from service.server.auth import Authenticator
from service.server.calls import Calls
from service.server.dead_letter_service import DeadLetterService
from service.server.event_service import EventService
from service.server.grpc_server import exposure, is_loopback, listen, make_health_server, make_server
from service.server.health import Health
from service.server.tls import TlsFiles
from service.telemetry.access_log import AccessLog
from service.telemetry.metrics import Metrics, set_log_level, start_metrics_server
from service.telemetry.tracing import Tracing, start_tracing

RELOAD_INTERVAL = 1.0  # seconds between looks at the files that may change
BEAT_INTERVAL = 0.5  # seconds between two beats of a loop that has nothing to do
QUIET_BEFORE_STOP = 0.2  # seconds in which calls that gRPC has queued get their UNAVAILABLE, and not its CANCELLED
LAST_ANSWERS_GRACE = 0.5  # seconds for the last answers to leave, after their calls have ended

ADVICE = {
    Cause.SETUP: "check the API token and POINTILLIST_API_URL; the events are kept, and one at a time is tried",
    Cause.REFUSALS: "Pointillist refuses every event: check the token, the mapping and POINTILLIST_API_URL;"
    " then pointillist-destination dead-letters replay --all",
    Cause.OUTAGE: "Pointillist cannot be reached or fails; the events are kept, and one at a time is tried",
    Cause.DEAD_LETTERS_FULL: "replay or delete dead letters, or raise POINTILLIST_DEAD_LETTER_MAX_EVENTS",
}

log = structlog.get_logger()


class FollowedFile(Protocol):
    """What is read from a file, and again when the file changes."""

    problem: str | None

    def has_changed(self) -> bool:
        """Whether the file is another one than the last that was read."""

    def reload(self) -> bool:
        """Read it again; returns whether it was taken up."""


class App:
    """One server, from its settings."""

    def __init__(self, settings: Settings, role: Role = Role.ALL) -> None:
        """Read what can be read before anything runs.

        Raises:
            SettingsError: the token, a certificate or the callers file cannot be used, or the role is none for them.
            MappingFileError: the mapping file cannot be used.
        """
        check_role(role, settings)
        self._settings = settings
        self._role = role
        self._token: TokenSource = settings.require_token()
        self._mapping = MappingSource(settings.mapping_file)
        self._callers = None if settings.callers_file is None else CallersFile(settings.callers_file)
        self._tls: TlsFiles | None = None
        if settings.tls_cert_file is not None and settings.tls_key_file is not None:
            self._tls = TlsFiles(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
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
        settings, role, clock, metrics = self._settings, self._role, SystemClock(), Metrics()
        async with contextlib.AsyncExitStack() as stack:
            tracing = self._tracing(stack)
            deliveries = DeliveryWaiters()
            outbox = await open_outbox(settings, clock, deliveries.settled)
            stack.push_async_callback(outbox.close)
            sender = make_sender(
                settings, role, mapping=self._mapping.current, token=self._token.current, clock=clock, stack=stack
            )
            flow = Flow(
                max(1, settings.max_concurrency // settings.relay_replicas),
                random.random,
                lambda flow: _tell(flow, metrics),
            )
            relay = Relay(
                outbox=outbox,
                sender=sender,
                flow=flow,
                deliveries=deliveries,
                metrics=metrics,
                clock=clock,
                random=random.random,
                max_age=settings.max_age,
                retry_max_delay=settings.retry_max_delay,
                dead_letters_most=settings.dead_letter_max_events,
                tracing=tracing,
            )
            _observe(metrics, outbox, relay, flow, clock)
            if isinstance(sender, WorkerPool):
                metrics.relay_workers.set_function(lambda: sender.alive)
                metrics.relay_worker_restarts.set_function(lambda: sender.restarts)
            service = EventService(
                outbox=outbox, mapping=self._mapping.current, deliveries=deliveries, metrics=metrics, clock=clock
            )
            health = Health(
                why_dead=outbox.broken,
                why_not_ready=(lambda: _reason(outbox.full())) if role.accepts else outbox.unreachable,
                is_getting_through=(lambda: flow.is_getting_through and sender.is_able) if role.relays else None,
                accepts=role.accepts,
                beat=lambda: _beat_health(outbox, metrics),
            )
            calls = self._calls(clock, metrics, tracing)
            dead_letters = DeadLetterService(dead_letters=outbox.dead_letters, mapping=self._mapping.current)
            server = make_server(
                [
                    *([event_service.handlers(service, calls)] if role.accepts else ()),
                    dead_letter_service.handlers(dead_letters, calls),
                ],
                [*([event_service.SERVICE_NAME] if role.accepts else ()), dead_letter_service.SERVICE_NAME],
                health,
                reflect=settings.reflection,
                authenticator=calls.authenticator,
            )
            stack.push_async_callback(server.stop, LAST_ANSWERS_GRACE)
            self.grpc_listen = listen(server, "POINTILLIST_GRPC_LISTEN", settings.grpc_listen, self._tls)
            metrics_server = start_metrics_server(settings.metrics_listen, metrics)
            stack.callback(metrics_server.stop)
            if settings.health_listen is not None:
                health_server = make_health_server(health)
                stack.push_async_callback(health_server.stop, 0)
                health_listen = listen(health_server, "POINTILLIST_HEALTH_LISTEN", settings.health_listen)
                await health_server.start()
                log.info("health is served alone", address=str(health_listen))

            relaying = asyncio.create_task(self._relay(relay, metrics))
            watching = [
                asyncio.create_task(loop)
                for loop in (
                    health.run(),
                    self._reload(flow, relay, metrics),
                    _wake_relay(relay),
                    _beat_writer(outbox, metrics),
                    outbox.watch(),
                )
            ]
            await health.look()
            await server.start()
            _tell_settings(settings)
            log.info("serving", address=str(self.grpc_listen), metrics=str(metrics_server.listen or "off"))
            started(self)
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait({stopping, relaying, *watching}, return_when=asyncio.FIRST_COMPLETED)

            log.info("stopping", delay=settings.shutdown_delay, grace=settings.shutdown_grace)
            await health.drain()
            await self._delay()
            service.drain()
            await asyncio.gather(calls.ended(settings.shutdown_grace), relay.stop(settings.shutdown_grace))
            await asyncio.sleep(QUIET_BEFORE_STOP)
            await server.stop(LAST_ANSWERS_GRACE)
            for task in (stopping, *watching) if role.relays else (stopping, relaying, *watching):
                task.cancel()
            for task in (relaying, *watching):
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        log.info("stopped", waiting=outbox.stats().events, dead_letters=outbox.stats().dead_letters)

    def _calls(self, clock: Clock, metrics: Metrics, tracing: Tracing | None) -> Calls:
        """What every call passes: who may call, and what is counted, logged and traced of it."""
        authenticator: Authenticator | None = None
        if self._callers is not None:
            authenticator = Authenticator(self._callers.current, clock.steady, metrics.rpc.count_caller)
            metrics.rpc.name_callers(self._callers.current().names)
        return Calls(
            authenticator=authenticator,
            metrics=metrics.rpc,
            access_log=AccessLog(clock.steady),
            tracing=tracing,
        )

    def _tracing(self, stack: contextlib.AsyncExitStack) -> Tracing | None:
        """What makes spans; it is closed last, as a collector that is gone may hold it up for a while."""
        tracing = start_tracing(os.environ, self._settings.api_url)
        if tracing is not None:
            stack.push_async_callback(asyncio.to_thread, tracing.close)
        return tracing

    async def _relay(self, relay: Relay, metrics: Metrics) -> None:
        """Relay, if it is for this server to do, until the relay is stopped; else until cancelled."""
        if self._role.relays:
            await relay.run()
        else:
            metrics.leave_out("relay")
            await asyncio.Event().wait()

    async def _delay(self) -> None:
        """Serve on while load balancers learn that this server goes; a second signal ends the wait."""
        self._stop.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), self._settings.shutdown_delay)

    def reload(self) -> None:
        """Read the files again now that settings name: the token, the mapping, certificates and callers."""
        self._hangup.set()

    async def _reload(self, flow: Flow, relay: Relay, metrics: Metrics) -> None:
        """Take up what changed in the files, and all of it when an operator asks."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._hangup.wait(), RELOAD_INTERVAL)
            is_asked = self._hangup.is_set()
            self._hangup.clear()
            self._reload_token(flow, relay, is_asked=is_asked)
            _follow(self._tls, "certificates", is_asked=is_asked)
            if _follow(self._callers, "callers", is_asked=is_asked) and self._callers is not None:
                metrics.rpc.name_callers(self._callers.current().names)
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


def _follow(file: FollowedFile | None, name: str, *, is_asked: bool) -> bool:
    """Read a file again where it changed or an operator asks; returns whether it was taken up."""
    if file is None or not (is_asked or file.has_changed()):
        return False
    if file.reload():
        log.info("file read again", file=name)
        return True
    log.error("file refused; what was read before stays in force", file=name, why=file.problem)
    return False


def _reason(error: OutboxUnavailableError | None) -> str | None:
    return None if error is None else error.reason


def _beat_health(outbox: OpenOutbox, metrics: Metrics) -> None:
    metrics.heartbeats["health"].inc()
    metrics.ready.set(outbox.full() is None)


async def _wake_relay(relay: Relay) -> None:
    """Have the relay's loop turn when there is nothing to do too, so that its heartbeat stops only when it is stuck."""
    while True:
        relay.look()
        await asyncio.sleep(BEAT_INTERVAL)


async def _beat_writer(outbox: OpenOutbox, metrics: Metrics) -> None:
    """Show that the outbox's writer answers; what it is asked for touches no event and costs no fsync."""
    nothing = DeadLetterFilter(ids=())
    while True:
        try:
            await outbox.dead_letters.list(nothing, after=0, limit=0)
            metrics.heartbeats["writer"].inc()
        except Exception as error:  # noqa: BLE001  # a store that fails is no beat, and ends nothing
            log.debug("the outbox did not answer a heartbeat", why=str(error))
        await asyncio.sleep(BEAT_INTERVAL)


def _tell_settings(settings: Settings) -> None:
    """Log the settings in force, and what in them an operator should think about."""
    log.info("settings", **effective(settings))
    if settings.api_url.startswith("http://") and not is_loopback(urlsplit(settings.api_url).hostname or ""):
        log.warning("the API token travels in plain text", advice="use https in POINTILLIST_API_URL")
    if advice := exposure(settings):
        log.warning("other machines can reach the gRPC port", address=str(settings.grpc_listen), advice=advice)


def _tell(flow: Flow, metrics: Metrics) -> None:
    """Say in the log and the metrics that the relay's state changed."""
    metrics.relay_state.state(flow.state.value)
    if flow.state is State.FLOWING:
        log.info("relay flows")
    elif flow.cause is not None:
        metrics.pauses[flow.cause.value].inc()
        log.warning(
            "relay does not flow",
            state=flow.state.value,
            cause=flow.cause.value,
            answer=flow.answer,
            advice=ADVICE[flow.cause],
        )


def _observe(metrics: Metrics, outbox: OpenOutbox, relay: Relay, flow: Flow, clock: SystemClock) -> None:
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


def serve(settings: Settings, started: Callable[[App], None] = lambda _: None, *, role: Role = Role.ALL) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads the files again, and SIGUSR1 turns debug lines on and off."""
    other_level = "info" if settings.log_level == "debug" else "debug"
    levels = itertools.cycle((other_level, settings.log_level))

    def change_log_level() -> None:
        level = next(levels)
        set_log_level(level)
        log.info("log level changed", level_now=level)

    async def run() -> None:
        app = App(settings, role)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, app.stop)
        loop.add_signal_handler(signal.SIGHUP, app.reload)
        loop.add_signal_handler(signal.SIGUSR1, change_log_level)
        await app.run(started)

    uvloop.run(run())
