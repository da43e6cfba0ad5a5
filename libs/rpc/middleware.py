"""It is responsible for what every call passes on its way in, in this order: log context, errors, peers, deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio
import structlog
from google.rpc import status_pb2

from libs.errors import Code, MeshError
from libs.rpc import deadline
from libs.rpc.calls import Call, Middleware, Proceed
from libs.rpc.errors import STATUS_DETAILS_KEY, internal_status, status_of
from libs.rpc.policies import OPERATIONS, Gate, MethodNotAllowed, MethodRule, RoleNotAllowed, adopt_caller
from libs.rpc.rates import Rates

log = structlog.get_logger()


class CertificateRequired(MeshError):
    """The connection has no client certificate, or is older than TLS 1.3."""

    code = Code.UNAUTHENTICATED
    reason = "CERTIFICATE_REQUIRED"


def standard_middleware(
    gate: Gate, methods: Mapping[str, MethodRule], observers: Sequence[Middleware] = ()
) -> Sequence[Middleware]:
    """The middleware of a mesh listener: mutual TLS, one table for everything it serves, health and reflection too.

    `observers` see every call and how it ends, refusals of the gate included; they MUST pass both on.
    """
    table = {**methods, **OPERATIONS}
    return (bind_log_context, map_errors, *observers, allow_peers(gate, table), adopt_deadline(table))


def public_middleware(
    methods: Mapping[str, MethodRule], *, calls_per_second: float | None = None
) -> Sequence[Middleware]:
    """The middleware of a listener without client certificates.

    It serves exactly what its table lists: no health, no reflection. `calls_per_second` limits each address.
    """
    rates = None if calls_per_second is None else Rates(calls_per_second)
    return (bind_log_context, map_strangers_errors, allow_listed(methods, rates), adopt_deadline(methods))


async def bind_log_context(call: Call, proceed: Proceed) -> Any:
    """Say in every line of this call which call it is."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(method=call.method)
    return await proceed()


async def map_errors(call: Call, proceed: Proceed) -> Any:
    """Send a domain error with its reason, and of a bug nothing but that there was one."""
    return await _mapped(call, proceed, thinned=False)


async def map_strangers_errors(call: Call, proceed: Proceed) -> Any:
    """The same where anybody may call: who is refused without end writes no log without end."""
    return await _mapped(call, proceed, thinned=True)


async def _mapped(call: Call, proceed: Proceed, *, thinned: bool) -> Any:
    try:
        return await proceed()
    except MeshError as error:
        log.info("refused", reason=error.reason, detail=str(error), thinned=thinned)
        await _abort(call, status_of(error))
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # The one place where a bug may be anything.
        refusal = _only_refusal(error)
        if refusal is not None:
            log.info("refused", reason=refusal.reason, detail=str(refusal), thinned=thinned)
            await _abort(call, status_of(refusal))
        log.error("bug", exc_info=error)
        await _abort(call, internal_status())


def allow_peers(gate: Gate, methods: Mapping[str, MethodRule]) -> Middleware:
    """Let in whom the table and the gate admit, for as long as the gate does."""

    async def middleware(call: Call, proceed: Proceed) -> Any:
        rule = _rule(methods, call)
        certificate = _certificate(call)
        caller = gate.admit(certificate, rule)
        if not rule.admits(caller.role):
            raise RoleNotAllowed(f"role {caller.role} may not call this method")
        adopt_caller(caller)
        structlog.contextvars.bind_contextvars(caller=caller.spiffe_id)
        try:
            with gate.hold(caller, rule):
                return await proceed()
        except asyncio.CancelledError:
            # Who cancelled: the client, or the gate because the lease ended? The gate then has a reason to tell.
            gate.admit(certificate, rule)
            raise

    return middleware


def allow_listed(methods: Mapping[str, MethodRule], rates: Rates | None) -> Middleware:
    """Let in anyone to what the table lists, no more often than `rates` has it."""

    async def middleware(call: Call, proceed: Proceed) -> Any:
        _rule(methods, call)
        _require_tls13(call.context.auth_context())
        if rates is not None:
            rates.spend(call.context.peer())
        return await proceed()

    return middleware


def adopt_deadline(methods: Mapping[str, MethodRule]) -> Middleware:
    """Refuse a call without a deadline unless it is a long-lived stream; spend what is left on outgoing calls."""

    async def middleware(call: Call, proceed: Proceed) -> Any:
        remaining: float | None = call.context.time_remaining()
        if remaining is None and not _rule(methods, call).long_lived:
            raise deadline.DeadlineRequired("set a deadline on this call")
        deadline.adopt(remaining)
        return await proceed()

    return middleware


def _rule(methods: Mapping[str, MethodRule], call: Call) -> MethodRule:
    rule = methods.get(call.method)
    if rule is None:
        raise MethodNotAllowed("this method is not for calling here")
    return rule


def _require_tls13(connection: Mapping[str, Iterable[bytes]]) -> None:
    if list(connection.get("ssl_tls_version", ())) != [b"TLSv1.3"]:
        raise CertificateRequired("connect with TLS 1.3")


def _certificate(call: Call) -> bytes:
    connection = call.context.auth_context()
    _require_tls13(connection)
    certificates = list(connection.get("x509_pem_cert", ()))
    if len(certificates) != 1:
        raise CertificateRequired("connect with a certificate of the mesh")
    return certificates[0]


def _only_refusal(error: Exception) -> MeshError | None:
    """The domain error inside the groups that a handler's task groups wrapped it in, if there is nothing else."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, MeshError) else None


async def _abort(call: Call, status: status_pb2.Status) -> NoReturn:
    await call.context.abort(
        _STATUS_CODES[status.code], status.message, ((STATUS_DETAILS_KEY, status.SerializeToString()),)
    )


_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
