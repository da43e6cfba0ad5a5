"""It is responsible for which engine a node runs: that stands in its measured app-compose, never in the host's files.

The engine sees every prompt. Whoever chose its interpreter or its arguments could read or change them, so the choice is
measured with the code and counts for the allow list. What the host may say of an engine is how much of it there is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from libs import jcs
from libs.aci.endpoints import DEFINED, FIRST, Endpoint, paths
from libs.errors import Code, MeshError
from libs.policy.compose import ComposeMalformed
from libs.policy.engine_arguments import require_known
from libs.policy.engine_server import SERVER, EngineServer, require_usable
from libs.policy.members import Members

_MEMBER = "teemesh_engine"
_KIND = re.compile(rf"embedded|vllm|{SERVER}")
_PATH = re.compile(r"/[A-Za-z0-9._/-]{1,255}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}")
_KEY_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{0,55}_(KEY|TOKEN)")
"""None that means something else to programs: PATH, LD_PRELOAD."""
_ARGUMENT = re.compile(r"[ -~]{1,1024}")
_ENDPOINT = re.compile("|".join(re.escape(endpoint.path) for endpoint in DEFINED))


class EngineInterpreterRefused(MeshError):
    """An interpreter is named for an engine that runs in the node's own."""

    code = Code.INVALID_ARGUMENT
    reason = "ENGINE_INTERPRETER_REFUSED"


@dataclass(frozen=True, slots=True)
class MeasuredEngine:
    """What runs. Raises `EngineArgumentsRefused`, `EngineInterpreterRefused` or `EngineServerRefused` for what would
    make receipts false."""

    kind: str
    """"embedded": the small model that comes as a package, on the CPU. "vllm": vLLM's OpenAI server. "openai-server":
    another one."""
    python: str | None = None
    """The interpreter of vLLM's own virtual environment in the image; None: the node's."""
    arguments: tuple[str, ...] = ()
    """Further arguments of the engine, for example ("--tensor-parallel-size", "8")."""
    endpoints: frozenset[Endpoint] | None = None
    """Where it is asked; None: where its kind always is."""
    server: EngineServer | None = None
    """What starts; of an "openai-server", and of no other."""

    def __post_init__(self) -> None:
        if (self.kind == SERVER) is (self.server is None):
            raise ValueError(f"a server is named for {SERVER} and for no other engine")
        if self.kind != "vllm" and self.python is not None:
            # Of the embedded engine, another's packages would say which version answers.
            raise EngineInterpreterRefused(f"the engine {self.kind} has no interpreter of its own: name none")
        if self.server is None:
            require_known(self.kind, self.arguments)
        else:
            require_usable(self.arguments, FIRST if self.endpoints is None else self.endpoints)

    def to_json(self) -> Mapping[str, Any]:
        """Return what `engine_of` reads."""
        document: dict[str, Any] = {"kind": self.kind, "arguments": list(self.arguments)}
        if self.python is not None:
            document["python"] = self.python
        if self.endpoints is not None:
            document["endpoints"] = paths(self.endpoints)
        return document if self.server is None else document | asdict(self.server)


def read_engine(app_compose_text: str) -> MeasuredEngine:
    """Read the engine of a node's measured app-compose.

    Raises what `engine_of` does.
    """
    try:
        value = jcs.loads_object(app_compose_text.encode("utf-8"))
    except (UnicodeEncodeError, jcs.JsonMalformed) as error:
        raise ComposeMalformed(f"the app-compose cannot be read: {error}") from error
    if _MEMBER not in value:
        raise ComposeMalformed(f"{_MEMBER} is missing: a node's app-compose names its engine")
    return engine_of(value[_MEMBER])


def engine_of(value: object) -> MeasuredEngine:
    """Read the member by itself.

    Raises `ComposeMalformed`, `EngineArgumentsRefused`, `EngineInterpreterRefused` or `EngineServerRefused`.
    """
    members = Members(value, _MEMBER, ComposeMalformed)
    kind = members.text("kind", _KIND)
    python = members.text("python", _PATH) if members.has("python") else None
    arguments = tuple(_argument(members, value) for value in _list(members.value("arguments"), members))
    asked = members.texts("endpoints", _ENDPOINT) if members.has("endpoints") else None
    server = _server(members) if kind == SERVER else None
    members.end()
    endpoints = None if asked is None else frozenset(endpoint for endpoint in DEFINED if endpoint.path in asked)
    return MeasuredEngine(kind, python, arguments, endpoints, server)


def _server(members: Members) -> EngineServer:
    return EngineServer(
        program=members.text("program", _PATH),
        name=members.text("name", _NAME),
        key_variable=members.text("key_variable", _KEY_VARIABLE),
        cache_salt=members.flag("cache_salt"),
    )


def _list(value: object, members: Members) -> list[object]:
    if not isinstance(value, list):
        raise members.refuse("arguments", "must be a list")
    return value


def _argument(members: Members, value: object) -> str:
    if not isinstance(value, str) or not _ARGUMENT.fullmatch(value):
        raise members.refuse("arguments", "must hold printable ASCII texts")
    return value
