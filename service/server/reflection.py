"""gRPC reflection (v1alpha), for callers with a token where a callers file is in force."""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from service.server.auth import Authenticator
from service.server.request_reading import END_OF_STREAM, Context, RequestReading
from service.server.rpc import abort, parse
from service.server.status import StatusError, too_many_calls

SERVICE_NAME: Final = reflection.SERVICE_NAME
MAX_CALLS: Final = 100  # at a time; a client asks on one, and ends it
READING_PLACES: Final = 4  # requests that are being read at a time
READING_SHARE: Final = 2  # of them for one caller


class Reflection:
    """The handler of reflection.

    Args:
        names: the services' full names.
        authenticator: knows callers by their tokens; without it, everybody may ask.
    """

    def __init__(self, names: Iterable[str], authenticator: Authenticator | None) -> None:
        self._servicer: Any = ReflectionServicer(names)
        self._authenticator = authenticator
        self._reading = RequestReading(READING_PLACES, READING_SHARE)
        self._calls = 0

    async def info(self, _: object, context: Context) -> None:
        """Answer each request of a call."""
        try:
            with self._place():
                caller = None
                if self._authenticator is not None:
                    caller = self._authenticator.identify(context.invocation_metadata()).caller
                async for answer in self._servicer.ServerReflectionInfo(self._requests(context, caller), None):
                    await context.write(answer.SerializeToString())
        except StatusError as fault:
            await abort(context, fault)

    async def _requests(
        self, context: Context, caller: str | None
    ) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        """Read requests until the caller sends no more."""
        while True:
            request = await self._reading.read(context, caller, "ServerReflectionRequest", may_end=True)
            if request is END_OF_STREAM:
                return
            yield parse(reflection_pb2.ServerReflectionRequest, request)

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self._calls >= MAX_CALLS:
            raise too_many_calls()
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1


def handlers(names: Iterable[str], authenticator: Authenticator | None) -> grpc.GenericRpcHandler:
    """Return reflection's method, as gRPC registers it."""
    info = Reflection(names, authenticator).info
    return grpc.method_handlers_generic_handler(
        SERVICE_NAME, {"ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(info)}
    )
