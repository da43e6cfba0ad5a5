"""It is responsible for what a request body asks of the engine: a model that is served, no cache salt, which sampling.

The engine judges the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from libs import jcs
from libs.aci import rewriting
from libs.aci.json_values import MOST_VALUES, has_more_values
from libs.aci.rewriting import JsonNotRewritable, Number, is_text
from libs.errors import Code, MeshError

_SAMPLING = (
    "frequency_penalty",
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens",
    "min_p",
    "n",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "temperature",
    "top_k",
    "top_p",
)
"""Numbers alone: what is text may be of the prompt."""
_LONGEST_NUMBER = 32


class BodyRefused(MeshError):
    """The body cannot be served. The client reads of it in an error of the model's API, with this HTTP status."""

    code = Code.INVALID_ARGUMENT
    reason = "BODY_REFUSED"
    status: ClassVar[int] = 400
    type: ClassVar[str] = "invalid_request_error"


class ModelNotServed(BodyRefused):
    """The model is not one of this node's."""

    code = Code.NOT_FOUND
    reason = "MODEL_NOT_SERVED"
    status = 404
    type = "not_found_error"


class CacheSaltRefused(BodyRefused):
    """A client may not choose in whose prefix cache it looks."""

    reason = "CACHE_SALT_REFUSED"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a body that may be served asks."""

    model: str
    sampling: str
    """Canonical JSON: every sampling setting that is a number, as it was written, in a string."""


def read_body(body: bytes, served: frozenset[str]) -> Asked:
    """Return what the body asks. Raises `BodyRefused`, `ModelNotServed` or `CacheSaltRefused`.

    The engine does not judge the model: some engines serve whatever name they are given. A body of many values takes
    long, and memory many times its length: it MUST be read beside the event loop, one at a time.
    """
    members = _parse(body)
    if "cache_salt" in members:
        raise CacheSaltRefused("cache_salt is not for clients to choose")
    model = members.get("model")
    if not is_text(model):
        raise BodyRefused("model must be a string")
    if model not in served:
        raise ModelNotServed("no such model is served here")
    numbers = ((name, members.get(name)) for name in _SAMPLING)
    written = {name: number[:_LONGEST_NUMBER] for name, number in numbers if isinstance(number, Number)}
    return Asked(model, jcs.dumps(written).decode())


def _parse(body: bytes) -> Mapping[str, Any]:
    if has_more_values(body, MOST_VALUES):
        raise BodyRefused(f"the body has more than {MOST_VALUES} JSON values")
    try:
        members = rewriting.loads(body)
    except JsonNotRewritable as error:
        # Of two members of one name this parser and the engine's may take different ones.
        raise BodyRefused("the body is not one valid JSON value in UTF-8 without repeated names") from error
    if not isinstance(members, dict):
        raise BodyRefused("the body must be a JSON object")
    return members
