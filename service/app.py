"""The composition root: builds the parts, starts them, and on a signal drains and stops them in order."""

import asyncio
import contextlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog

from service.clock import Clock, SystemClock
from service.config.address import Listen
from service.config.private_files import PRIVATE, open_to_others
from service.config.role import Role
from service.config.settings import Settings, effective
from service.intake.callers import watch_callers
from service.intake.certificates import watch_certificates
from service.loopback import is_loopback
from service.outbox.base import DeadLetterFilter, OpenOutbox
from service.outbox.deliveries import DeliveryWaiters
from service.outbox.factory import check_role, open_outbox
from service.relay.factory import make_sender, report_flow
from service.relay.flow import Flow
from service.relay.passed_setup import PassedSetup
from service.relay.relay import Relay
from service.relay.worker_pool import WorkerPool
from service.reloader import Reloader, watch_mapping
from service.server import dead_letter_service, event_service
from service.server.auth import Authenticator
from service.server.calls import Calls
from service.server.dead_letter_service import DeadLetterService
from service.server.event_service import EventService
from service.server.grpc_server import Server, exposure, make_health_server, make_server
from service.server.health import Health
from service.server.listener import Listener
from service.server.rpc import UnknownMethods
from service.telemetry.access_log import AccessLog
from service.telemetry.descriptors import Descriptors
from service.telemetry.logs import dropped_log_lines
from service.telemetry.metrics import ListenerName, Metrics
from service.telemetry.metrics_server import MetricsServer, start_metrics_server
from service.telemetry.tracing import Tracing, start_tracing

HEARTBEAT_INTERVAL = 0.5  # seconds between the heartbeats of a loop that has nothing to do
QUIET_BEFORE_STOP = 0.2  # seconds in which calls that gRPC has queued get their UNAVAILABLE, and not its CANCELLED
WAITING_SHARE = 0.1  # of all calls may wait for a delivery, so that those of an outage do not shut out the others
LAST_ANSWERS_GRACE = 0.5  # seconds for the last answers to leave, after their calls have ended

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of one server that `run` starts and stops."""

    outbox: OpenOutbox
    relay: Relay
    service: EventService
    health: Health
    calls: tuple[Calls, ...]
    server: Listener
    metrics: Metrics
    metrics_server: MetricsServer
    reloader: Reloader


class App:
    """One server, from its settings."""

    def __init__(
        self, settings: Settings, role: Role = Role.ALL, *, note_alive: Callable[[], None] = lambda: None
    ) -> None:
        """Read the files that the settings name, before anything runs.

        Args:
            settings: in force from now on.
            role: of this server.
            note_alive: called about once a second while the process works, as liveness says it.

        Raises:
            SettingsError: the token, a certificate or the callers file cannot be used, or the role is none for them.
            MappingFileError: the mapping file cannot be used.
        """
        check_role(role, settings)
        self._settings = settings
        self._role = role
        self._note_alive = note_alive
        self._token = settings.require_token()
        self._mapping = watch_mapping(settings.mapping_file)
        self._callers = None if settings.callers_file is None else watch_callers(settings.callers_file)
        self._certificates = None
        if settings.tls_cert_file is not None and settings.tls_key_file is not None:
            self._certificates = watch_certificates(
                settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file
            )
        self._stop = asyncio.Event()
        self._reloader: Reloader | None = None
        self._listeners: list[Listener] = []
        self._descriptors = Descriptors()
        self.grpc_listen: Listen | None = None
        """The address of the gRPC port, once it serves."""

    def stop(self) -> None:
        """Begin to stop; a second call cuts the shutdown delay short."""
        self._stop.set()

    def reload(self) -> None:
        """Read the files that the settings name again: the token, the mapping, certificates and callers."""
        if self._reloader is not None:
            self._reloader.reload()

    async def run(self, started: Callable[["App"], None] = lambda _: None) -> None:
        """Serve until `stop`.

        Raises:
            SettingsError: an address cannot be listened on.
            OutboxUnusableError: the outbox cannot be opened.
        """
        async with contextlib.AsyncExitStack() as stack:
            parts = await self._build(stack)
            self._reloader = parts.reloader
            relaying = asyncio.create_task(self._relay(parts))
            await parts.server.start()
            parts.health.refresh()
            loops = (
                parts.health.run(),
                parts.reloader.run(),
                _wake_relay(parts.relay),
                _beat_writer(parts.outbox, parts.metrics),
                parts.outbox.watch(),
                self._descriptors.run(),
                *(listener.run() for listener in self._listeners),
            )
            watching = [asyncio.create_task(loop) for loop in loops]
            self._note_alive()
            _log_settings(self._settings)
            metrics_listen = str(parts.metrics_server.listen or "off")
            log.info("serving", address=str(self.grpc_listen), metrics=metrics_listen)
            started(self)
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait({stopping, relaying, *watching}, return_when=asyncio.FIRST_COMPLETED)
            await self._shut_down(parts)
            for task in (stopping, *watching) if self._role.relays else (stopping, relaying, *watching):
                task.cancel()
            for task in (relaying, *watching):
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        stats = parts.outbox.stats()
        log.info("stopped", waiting=stats.events, dead_letters=stats.dead_letters)

    async def _shut_down(self, parts: _Parts) -> None:
        """Drain, then stop: readiness first, so that load balancers send no more calls."""
        settings = self._settings
        log.info("stopping", delay=settings.shutdown_delay, grace=settings.shutdown_grace)
        parts.health.drain()
        await self._delay()
        parts.service.drain()
        grace = settings.shutdown_grace
        await asyncio.gather(*(calls.ended(grace) for calls in parts.calls), parts.relay.stop(grace))
        await asyncio.sleep(QUIET_BEFORE_STOP)
        await asyncio.gather(*(listener.stop(LAST_ANSWERS_GRACE) for listener in self._listeners))

    # -- building

    async def _build(self, stack: contextlib.AsyncExitStack) -> _Parts:
        """Build the parts, and listen; `stack` closes them in the reverse order."""
        settings, role, clock, metrics = self._settings, self._role, SystemClock(), Metrics()
        tracing = self._tracing(stack)
        deliveries = DeliveryWaiters()
        outbox = await open_outbox(settings, clock, deliveries.settled)
        stack.push_async_callback(outbox.close)
        setup = PassedSetup(outbox, settings.api_url, self._token.current, self._mapping.current)
        has_passed = await setup.has_passed()
        flow = Flow(
            max(1, settings.max_concurrency // settings.relay_replicas),
            random.random,
            lambda flow: report_flow(flow, metrics),
            has_passed=has_passed,
        )
        sender = make_sender(
            settings, role, mapping=self._mapping.current, token=self._token.current, clock=clock, stack=stack
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
            passed=setup.passed,
        )
        _observe(metrics, outbox, relay, flow, clock)
        metrics.descriptor_usage.set_function(lambda: self._descriptors.share)
        if isinstance(sender, WorkerPool):
            metrics.relay_workers.set_function(lambda: sender.alive)
            metrics.relay_worker_restarts.set_function(lambda: sender.restarts)
        service = EventService(
            outbox=outbox,
            mapping=self._mapping.current,
            deliveries=deliveries,
            metrics=metrics,
            clock=clock,
            most_waiting=max(1, round(settings.max_calls * WAITING_SHARE)),
        )
        health = Health(
            why_dead=lambda: self._why_dead(outbox),
            why_not_ready=lambda: self._why_not_ready(outbox),
            is_getting_through=(
                (lambda: flow.is_getting_through(clock.steady()) and relay.is_able) if role.relays else None
            ),
            accepts=role.accepts,
            beat=lambda: self._beat_health(outbox, metrics),
        )
        calls = self._calls(clock, metrics, tracing)
        operators = calls.with_own_bound()
        metrics.call_usage.set_function(lambda: calls.usage)
        dead_letters = DeadLetterService(dead_letters=outbox.dead_letters, mapping=self._mapping.current)
        handlers = [
            *([event_service.handlers(service, calls)] if role.accepts else ()),
            dead_letter_service.handlers(dead_letters, operators),
        ]
        names = [*([event_service.SERVICE_NAME] if role.accepts else ()), dead_letter_service.SERVICE_NAME]
        server = self._listener(
            "grpc",
            lambda: make_server(
                handlers,
                names,
                health,
                reflect=settings.reflection,
                authenticator=calls.authenticator,
                unknown=UnknownMethods(calls),
            ),
            metrics,
            stack,
        )
        self.grpc_listen = server.bind("POINTILLIST_GRPC_LISTEN", settings.grpc_listen, self._certificates)
        metrics_server = start_metrics_server(settings.metrics_listen, metrics)
        stack.callback(metrics_server.stop)
        await self._serve_health(health, UnknownMethods(calls), metrics, stack)

        def changed() -> None:
            if setup.has_changed():
                flow.begin_again()
            flow.probe_now()
            relay.wake()

        reloader = Reloader(
            token=self._token,
            mapping=self._mapping,
            callers=self._callers,
            certificates=self._certificates,
            metrics=metrics,
            changed=changed,
            callers_changed=calls.recheck,
        )
        return _Parts(outbox, relay, service, health, (calls, operators), server, metrics, metrics_server, reloader)

    async def _serve_health(
        self, health: Health, unknown: UnknownMethods, metrics: Metrics, stack: contextlib.AsyncExitStack
    ) -> None:
        """Serve health on a port of its own, where the settings name one."""
        address = self._settings.health_listen
        if address is None:
            return
        listener = self._listener("health", lambda: make_health_server(health, unknown), metrics, stack)
        bound = listener.bind("POINTILLIST_HEALTH_LISTEN", address)
        await listener.start()
        log.info("health server listening", address=str(bound))

    def _listener(
        self, name: ListenerName, make: Callable[[], Server], metrics: Metrics, stack: contextlib.AsyncExitStack
    ) -> Listener:
        """Make a listener, which `run` watches and `stack` stops."""
        listener = Listener(name, make, metrics.listener_restarts[name].inc)
        metrics.follow_listener(name, lambda: listener.is_listening)
        self._listeners.append(listener)
        stack.push_async_callback(listener.stop, LAST_ANSWERS_GRACE)
        return listener

    def _why_dead(self, outbox: OpenOutbox) -> str | None:
        """Return a reason while only a restart helps."""
        return outbox.broken() or self._silent()

    def _why_not_ready(self, outbox: OpenOutbox) -> str | None:
        """Return a reason while no events are accepted or, in a role that accepts none, while the outbox is away."""
        if self._role.accepts and (error := outbox.full()) is not None:
            return error.reason
        return (None if self._role.accepts else outbox.unreachable()) or self._silent()

    def _silent(self) -> str | None:
        """Return a reason while a listener takes no calls."""
        return None if all(listener.is_listening for listener in self._listeners) else "a gRPC server has ended"

    def _calls(self, clock: Clock, metrics: Metrics, tracing: Tracing | None) -> Calls:
        """Build the wrapper of every call: it authenticates, counts, logs and traces."""
        authenticator: Authenticator | None = None
        if self._callers is not None:
            authenticator = Authenticator(self._callers.current, clock.steady, metrics.rpc.count_caller)
            metrics.rpc.name_callers(self._callers.current().names)
        return Calls(
            most=self._settings.max_calls,
            authenticator=authenticator,
            by_certificate=self._settings.tls_client_ca_file is not None,
            metrics=metrics.rpc,
            access_log=AccessLog(clock.steady),
            tracing=tracing,
        )

    def _tracing(self, stack: contextlib.AsyncExitStack) -> Tracing | None:
        """Start tracing; it is closed last, as a collector that is gone may hold it up for a while."""
        tracing = start_tracing(os.environ, self._settings.api_url)
        if tracing is not None:
            stack.push_async_callback(tracing.close)
        return tracing

    # -- running

    def _beat_health(self, outbox: OpenOutbox, metrics: Metrics) -> None:
        metrics.heartbeats["health"].inc()
        metrics.ready.set(self._why_not_ready(outbox) is None)
        if self._why_dead(outbox) is None:
            self._note_alive()

    async def _relay(self, parts: _Parts) -> None:
        """Relay until the relay is stopped; in a role that does not, wait until cancelled."""
        if self._role.relays:
            await parts.relay.run()
        else:
            parts.metrics.leave_out("relay")
            await asyncio.Event().wait()

    async def _delay(self) -> None:
        """Serve on while load balancers learn that this server goes; a second signal ends the wait."""
        self._stop.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), self._settings.shutdown_delay)


async def _wake_relay(relay: Relay) -> None:
    """Wake the relay's loop while there is nothing to do, so that its heartbeat stops only when it is stuck."""
    while True:
        relay.wake()
        await asyncio.sleep(HEARTBEAT_INTERVAL)


async def _beat_writer(outbox: OpenOutbox, metrics: Metrics) -> None:
    """Show that the outbox's writer answers: a request that matches nothing is executed by it, without an fsync."""
    nothing = DeadLetterFilter(ids=())
    while True:
        try:
            await outbox.dead_letters.list(nothing, after=0, limit=1)
            metrics.heartbeats["writer"].inc()
        except Exception as error:  # noqa: BLE001  # a store that fails is no beat, and ends nothing
            log.debug("the outbox did not answer a heartbeat", why=str(error))
        await asyncio.sleep(HEARTBEAT_INTERVAL)


def _log_settings(settings: Settings) -> None:
    """Log the settings in force, and warn of those that expose the service."""
    log.info("settings", **effective(settings))
    if settings.api_url.startswith("http://") and not is_loopback(urlsplit(settings.api_url).hostname or ""):
        log.warning("the API token travels in plain text", advice="use https in POINTILLIST_API_URL")
    for setting, path, mode in open_to_others(settings):
        log.warning("any user can read a file", setting=setting, path=str(path), mode=mode, advice=PRIVATE)
    if settings.callers_file is None and settings.tls_client_ca_file is None:
        log.info("one caller may have all calls at a time", advice="set POINTILLIST_CALLERS_FILE to tell callers apart")
    if advice := exposure(settings):
        log.warning("other machines can reach the gRPC port", address=str(settings.grpc_listen), advice=advice)


def _observe(metrics: Metrics, outbox: OpenOutbox, relay: Relay, flow: Flow, clock: Clock) -> None:
    """Connect the gauges to the parts that they read."""
    metrics.log_lines_dropped.set_function(dropped_log_lines)
    metrics.outbox_events.set_function(lambda: outbox.stats().events)
    metrics.outbox_bytes.set_function(lambda: outbox.stats().bytes)
    metrics.dead_letters.set_function(lambda: outbox.stats().dead_letters)
    metrics.outbox_commits.set_function(lambda: outbox.totals.commits)
    metrics.outbox_committed_events.set_function(lambda: outbox.totals.committed_events)
    metrics.duplicate_evictions.set_function(lambda: outbox.totals.evictions)
    metrics.parked_settlements.set_function(lambda: outbox.totals.parked)
    metrics.unreadable_events.set_function(lambda: outbox.totals.unreadable)
    metrics.outbox_log_bytes.set_function(lambda: outbox.totals.log_bytes)
    metrics.outbox_incomplete_checkpoints.set_function(lambda: outbox.totals.incomplete_checkpoints)
    metrics.concurrency_limit.set_function(lambda: flow.target)
    metrics.in_flight.set_function(lambda: relay.in_flight)

    def oldest_age() -> float:
        oldest_at = outbox.stats().oldest_at
        return 0.0 if oldest_at is None else max(0.0, clock.wall() - oldest_at / 1000)

    metrics.outbox_oldest_age.set_function(oldest_age)
