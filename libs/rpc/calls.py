"""It is responsible for the shape of middleware: a coroutine around each running call.

gRPC knows four kinds of handlers, and streaming ones come as generators or as coroutines that write. Here all become
coroutines, so that whatever a middleware or a generator opens is closed in the call's own task when the call is over,
cancelled calls included, and not at garbage collection. Middleware is no context manager, which would read as well,
because each would cost a call more than everything that it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import grpc.aio

from libs.errors import Code, MeshError
from libs.rpc.bounds import read_message, taking_several

# Messages are whatever the service's own stubs say; nothing here looks into them.
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One running call: its full method name and gRPC's context."""

    method: str
    context: Context


_HEADERS_SECONDS = 1.0


class CallerLeft(MeshError):
    """The call's connection is gone. Nobody is told."""

    code = Code.UNAVAILABLE
    reason = "CALLER_LEFT"


Proceed = Callable[[], Awaitable[Any]]
"""What is inside: the next middleware and at last the call itself."""
Middleware = Callable[[Call, Proceed], Awaitable[Any]]
"""Runs around a call. MUST await what is inside once and return what that returns, or raise."""


class MiddlewareInterceptor(grpc.aio.ServerInterceptor):
    """Runs every call inside the given middleware, the first outermost.

    With `message_seconds` it does so before the call's message has come, which is then read inside, within that time.
    """

    def __init__(self, middleware: Sequence[Middleware], *, message_seconds: float | None = None) -> None:
        self._inwards = tuple(reversed(middleware))
        self._message_seconds = message_seconds
        self._wrapped: dict[str, tuple[grpc.RpcMethodHandler[Any, Any], grpc.RpcMethodHandler[Any, Any]]] = {}
        """By method: the handler that its service gave last, and the same inside the middleware."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # No service here has the method, and gRPC answers UNIMPLEMENTED without running anything.
        method = handler_call_details.method
        known, wrapped = self._wrapped.get(method, (None, None))
        if known is not handler or wrapped is None:
            wrapped = self._around(handler, method)
            self._wrapped[method] = (handler, wrapped)
        return wrapped

    def _around(self, handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
        kind = f"{_arity(handler.request_streaming)}_{_arity(handler.response_streaming)}"
        behaviour: Callable[[Any, Context], Any] = getattr(handler, kind)
        run: Callable[[Any, Context], Any] = partial(_write_all, behaviour) if handler.response_streaming else behaviour
        seconds = None if handler.request_streaming else self._message_seconds
        if seconds is not None:
            run = partial(_read_first, run, seconds, writes=handler.response_streaming)

        async def run_inside(request: Any, context: Context) -> Any:
            call = Call(method, context)
            proceed: Proceed = partial(run, request, context)
            for each in self._inwards:
                proceed = partial(each, call, proceed)
            return await proceed()

        if seconds is not None:
            return taking_several(handler, run_inside)
        wrap: Callable[..., grpc.RpcMethodHandler[Any, Any]] = getattr(grpc, f"{kind}_rpc_method_handler")
        return wrap(run_inside, handler.request_deserializer, handler.response_serializer)


async def _read_first(
    run: Callable[[Any, Context], Awaitable[Any]], seconds: float, requests: object, context: Context, *, writes: bool
) -> None:
    response = await run(await read_message(context, seconds), context)
    if not writes:
        # Once this returns, the client has room for it: until then the call has not ended.
        await _write(context, response)


async def _write_all(
    behaviour: Callable[[Any, Context], AsyncIterator[Any] | Awaitable[None]], request: Any, context: Context
) -> None:
    responses = behaviour(request, context)
    if isinstance(responses, Awaitable):
        await responses  # It writes by itself.
        return
    begun = False
    async with aclosing(responses):  # type: ignore[type-var]  # Only async generators come here.
        async for response in responses:
            if not begun:
                await _send_headers(context)
                begun = True
            await _write(context, response)


async def _write(context: Context, response: Any) -> None:
    try:
        await context.write(response)
    except grpc.aio.InternalError as error:  # All that gRPC says where it has not cancelled the call yet.
        raise CallerLeft("the connection ended before this was written") from error


async def _send_headers(context: Context) -> None:
    """Send what comes before the first response. Who is cancelled meanwhile waits for it: gRPC can send no status as
    long as it is on its way, and the caller would learn neither the reason nor that there was one.
    """
    sending = asyncio.ensure_future(context.send_initial_metadata(()))
    try:
        await asyncio.shield(sending)
    except asyncio.CancelledError:
        await asyncio.wait((sending,), timeout=_HEADERS_SECONDS)
        raise


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"
