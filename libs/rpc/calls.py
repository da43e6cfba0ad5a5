"""It is responsible for the shape of middleware: an async context manager around each running call.

gRPC knows four kinds of handlers, and streaming ones come as generators or as coroutines that write. Here all become
coroutines, so that whatever a middleware or a generator opens is closed in the call's own task when the call is over,
cancelled calls included, and not at garbage collection.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

# Messages are whatever the service's own stubs say; nothing here looks into them.
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One running call: its full method name and gRPC's context."""

    method: str
    context: Context


Middleware = Callable[[Call], AbstractAsyncContextManager[None]]


class MiddlewareInterceptor(grpc.aio.ServerInterceptor):
    """Runs every call inside the given middleware, the first outermost."""

    def __init__(self, middleware: Sequence[Middleware]) -> None:
        self._middleware = tuple(middleware)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        # None: no service here has the method, and gRPC answers UNIMPLEMENTED without running anything.
        return None if handler is None else self._around(handler, handler_call_details.method)

    def _around(self, handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
        kind = f"{_arity(handler.request_streaming)}_{_arity(handler.response_streaming)}"
        behaviour: Callable[[Any, Context], Any] = getattr(handler, kind)
        run = _write_all if handler.response_streaming else _answer

        async def run_inside(request: Any, context: Context) -> Any:
            async with AsyncExitStack() as stack:
                call = Call(method, context)
                for each in self._middleware:
                    await stack.enter_async_context(each(call))
                return await run(behaviour, request, context)

        wrap: Callable[..., grpc.RpcMethodHandler[Any, Any]] = getattr(grpc, f"{kind}_rpc_method_handler")
        return wrap(run_inside, handler.request_deserializer, handler.response_serializer)


async def _answer(behaviour: Callable[[Any, Context], Awaitable[Any]], request: Any, context: Context) -> Any:
    return await behaviour(request, context)


async def _write_all(
    behaviour: Callable[[Any, Context], AsyncIterator[Any] | Awaitable[None]], request: Any, context: Context
) -> None:
    responses = behaviour(request, context)
    if isinstance(responses, Awaitable):
        await responses  # It writes by itself.
        return
    async with aclosing(responses):  # type: ignore[type-var]  # Only async generators come here.
        async for response in responses:
            await context.write(response)


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"
