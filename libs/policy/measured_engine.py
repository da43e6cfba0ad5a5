"""It is responsible for which engine a node runs: that stands in its measured app-compose, never in the host's files.

The engine sees every prompt. Whoever chose its interpreter or its arguments could read or change them, so the choice is
measured with the code and counts for the allow list. What the host may say of an engine is how much of it there is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from libs import jcs
from libs.aci.endpoints import DEFINED, Endpoint
from libs.errors import Code, MeshError
from libs.policy.compose import ComposeMalformed
from libs.policy.engine_arguments import require_known
from libs.policy.members import Members

_MEMBER = "teemesh_engine"
_KIND = re.compile(r"embedded|vllm")
_PATH = re.compile(r"/[A-Za-z0-9._/-]{1,255}")
_ARGUMENT = re.compile(r"[ -~]{1,1024}")
_ENDPOINT = re.compile("|".join(re.escape(endpoint.path) for endpoint in DEFINED))


class EngineInterpreterRefused(MeshError):
    """An interpreter is named for an engine that runs in the node's own."""

    code = Code.INVALID_ARGUMENT
    reason = "ENGINE_INTERPRETER_REFUSED"


@dataclass(frozen=True, slots=True)
class MeasuredEngine:
    """What runs. Raises `EngineArgumentsRefused` or `EngineInterpreterRefused` for what would make receipts false."""

    kind: str
    """"embedded": the small model that comes as a package, on the CPU. "vllm": vLLM's OpenAI server."""
    python: str | None = None
    """The interpreter of the engine's own virtual environment in the image; None: the node's."""
    arguments: tuple[str, ...] = ()
    """Further arguments of the engine, for example ("--tensor-parallel-size", "8")."""
    endpoints: frozenset[Endpoint] | None = None
    """Where it is asked; None: where its kind always is."""

    def __post_init__(self) -> None:
        if self.kind == "embedded" and self.python is not None:
            # Another's packages would say which version answers.
            raise EngineInterpreterRefused("the embedded engine runs by the node's own interpreter: name none")
        require_known(self.kind, self.arguments)


def read_engine(app_compose_text: str) -> MeasuredEngine:
    """Read the engine of a node's measured app-compose.

    Raises `ComposeMalformed`, `EngineArgumentsRefused` or `EngineInterpreterRefused`.
    """
    try:
        value = jcs.loads_object(app_compose_text.encode("utf-8"))
    except (UnicodeEncodeError, jcs.JsonMalformed) as error:
        raise ComposeMalformed(f"the app-compose cannot be read: {error}") from error
    if _MEMBER not in value:
        raise ComposeMalformed(f"{_MEMBER} is missing: a node's app-compose names its engine")
    members = Members(value[_MEMBER], _MEMBER, ComposeMalformed)
    kind = members.text("kind", _KIND)
    python = members.text("python", _PATH) if members.has("python") else None
    arguments = tuple(_argument(members, value) for value in _list(members.value("arguments"), members))
    paths = members.texts("endpoints", _ENDPOINT) if members.has("endpoints") else None
    members.end()
    endpoints = None if paths is None else frozenset(endpoint for endpoint in DEFINED if endpoint.path in paths)
    return MeasuredEngine(kind, python, arguments, endpoints)


def _list(value: object, members: Members) -> list[object]:
    if not isinstance(value, list):
        raise members.refuse("arguments", "must be a list")
    return value


def _argument(members: Members, value: object) -> str:
    if not isinstance(value, str) or not _ARGUMENT.fullmatch(value):
        raise members.refuse("arguments", "must hold printable ASCII texts")
    return value
