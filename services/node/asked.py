"""It is responsible for what a request body asks of the engine: a model that is served, members that are known and
within their bounds, which sampling.

The engine judges the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from libs import jcs
from libs.aci import rewriting
from libs.aci.endpoints import Endpoint
from libs.aci.json_values import MOST_VALUES, has_more_values
from libs.aci.rewriting import JsonNotRewritable, Number, is_text
from libs.errors import Code, MeshError
from services.node.members import KNOWN, LONGEST, MOST
from services.node.sequences import MOST_SEQUENCES, sequences_of

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
_LONGEST_NAME = 64
"""Of a member that is refused, in the words that say so."""


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


class MemberRefused(BodyRefused):
    """The body has a member that is not known at its endpoint."""

    reason = "MEMBER_REFUSED"


class TooMuchAsked(BodyRefused):
    """A member that sizes the engine's memory or work is beyond its bound, or no number at all."""

    reason = "TOO_MUCH_ASKED"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a body that may be served asks."""

    model: str
    sampling: str
    """Canonical JSON: every sampling setting that is a number, as it was written, in a string."""
    sequences: int


def read_body(body: bytes, served: frozenset[str], endpoint: Endpoint, most_sequences: int = MOST_SEQUENCES) -> Asked:
    """Return what the body asks there, which may be so many sequences. Raises `BodyRefused` or what is one.

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
    _require_known(members, endpoint)
    _require_bounded(members)
    sequences = sequences_of(members, endpoint)
    if sequences > most_sequences:
        raise TooMuchAsked(
            f"the prompts, times n or best_of, may be {most_sequences} at most here: ask in several requests"
        )
    numbers = ((name, members.get(name)) for name in _SAMPLING)
    written = {name: number[:_LONGEST_NUMBER] for name, number in numbers if isinstance(number, Number)}
    return Asked(model, jcs.dumps(written).decode(), sequences)


def _require_known(members: Mapping[str, Any], endpoint: Endpoint) -> None:
    known = KNOWN[endpoint]
    for name in members:
        if name not in known:
            raise MemberRefused(f"{name[:_LONGEST_NAME]!a} is not a member that is taken at {endpoint.path}")


def _require_bounded(members: Mapping[str, Any]) -> None:
    for name, most in MOST.items():
        value = members.get(name)
        # Some engines read a number out of a text or a fraction, and some take a negative one for all there is.
        if value is not None and not isinstance(value, bool) and not _is_count(value, most):
            raise TooMuchAsked(f"{name} must be a whole number from 0 to {most}")
    for name, longest in LONGEST.items():
        value = members.get(name)
        if isinstance(value, list | dict) and len(value) > longest:
            raise TooMuchAsked(f"{name} must have at most {longest} entries")


def _is_count(value: object, most: int) -> bool:
    # A text that is longer than the bound's is more than it: JSON's numbers have no leading zeros.
    return isinstance(value, Number) and value.isdigit() and len(value) <= len(str(most)) and int(value) <= most


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
