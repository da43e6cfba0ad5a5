"""It is responsible for who may call what: the method tables, the caller of a running call, and the gate they pass.

A method that no table lists admits nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import grpc.aio

from libs.errors import Code, MeshError
from libs.rpc.channel import MESSAGE_BYTES

if TYPE_CHECKING:
    from libs.tee.appraisal import Appraisal
    from libs.tee.evidence import Evidence

ANY_ROLE = frozenset({"*"})


class MethodNotAllowed(MeshError):
    """The method is in no table of this listener."""

    code = Code.PERMISSION_DENIED
    reason = "METHOD_NOT_ALLOWED"


class RoleNotAllowed(MeshError):
    """The method is not for the caller's role."""

    code = Code.PERMISSION_DENIED
    reason = "ROLE_NOT_ALLOWED"


class MethodTableWrong(MeshError):
    """Two services claim one method, or a table lists a method that is not its service's."""

    reason = "METHOD_TABLE_WRONG"


@dataclass(frozen=True, slots=True)
class MethodRule:
    """Who may call one method.

    `lease`: whether the caller must be appraised, not only certified. `long_lived`: a stream that may run without a
    deadline; it ends with its caller's lease and, where it needs one, when the policy here is not fresh any more.
    """

    roles: frozenset[str]
    lease: bool = True
    long_lived: bool = False

    def admits(self, role: str) -> bool:
        return self.roles == ANY_ROLE or role in self.roles


class Lease(Protocol):
    """What a server may know about an appraised caller."""

    @property
    def appraisal(self) -> Appraisal: ...

    @property
    def evidence(self) -> Evidence: ...

    @property
    def until(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes the running call. `lease` is None for people and for methods that need none."""

    role: str
    instance: str
    spiffe_id: str
    spki_sha256: bytes
    certificate_der: bytes
    lease: Lease | None


class Gate(Protocol):
    """Decides whether the bearer of a certificate may make a call."""

    def admit(self, certificate_pem: bytes, rule: MethodRule) -> Caller:
        """Return who calls. Raises `MeshError`. MUST be cheap for a caller that it knows."""
        ...

    def hold(self, caller: Caller, rule: MethodRule) -> AbstractContextManager[None]:
        """Run the current task on the caller's lease.

        MUST cancel the task when the lease ends, and MUST refuse the same caller in `admit` from then on, or raise in
        the cancellation's place: that refusal is what the client is told.
        """
        ...


@dataclass(frozen=True, slots=True)
class ServiceBinding:
    """A servicer ready to be added: its full service name, how it is added, its method table, and how large one message
    of its answers may be.
    """

    name: str
    add: Callable[[grpc.aio.Server], None]
    methods: Mapping[str, MethodRule]
    answer_bytes: int = MESSAGE_BYTES


_OPERATIONS = MethodRule(roles=ANY_ROLE, lease=False, long_lived=True)
# What every mesh listener serves beside its own services, to any certificate of the mesh.
OPERATIONS: Mapping[str, MethodRule] = {
    "/grpc.health.v1.Health/Check": MethodRule(roles=ANY_ROLE, lease=False),
    "/grpc.health.v1.Health/Watch": _OPERATIONS,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _OPERATIONS,
}

_caller: ContextVar[Caller] = ContextVar("teemesh_caller")


def current_caller() -> Caller:
    """Return who makes the running call. Outside of one, and on public listeners, there is nobody: `LookupError`."""
    return _caller.get()


def adopt_caller(caller: Caller) -> None:
    """Make a caller the running call's. The call's task has its own context, so nothing needs resetting."""
    _caller.set(caller)


def merge_methods(bindings: Iterable[ServiceBinding]) -> dict[str, MethodRule]:
    """Return the tables of several services as one. Raises `MethodTableWrong`."""
    merged: dict[str, MethodRule] = {}
    for binding in bindings:
        for method, rule in binding.methods.items():
            if not method.startswith(f"/{binding.name}/") or method in merged:
                raise MethodTableWrong(f"{method} cannot be listed for {binding.name}")
            merged[method] = rule
    return merged
