"""It is responsible for what a request body asks of the engine: a model that is served, members that are known, within
their bounds and made of what is taken there, which sampling.

The engine judges the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from libs import jcs
from libs.aci import rewriting
from libs.aci.encoding import digest
from libs.aci.endpoints import Endpoint
from libs.aci.json_values import MOST_LEVELS, MOST_VALUES, has_more_values, is_nested
from libs.aci.rewriting import JsonNotRewritable, Number, is_text
from libs.errors import Code
from services.node.api.bodies import require_taken
from services.node.api.kinds import EngineTakes, MemberRefused
from services.node.calling import Calling
from services.node.members import KNOWN, LONGEST, MOST, SAMPLING, UNTOLD
from services.node.refused import BodyRefused
from services.node.schemas import schema_excess
from services.node.sequences import MOST_SEQUENCES, sequences_of

_LONGEST_NUMBER = 32
_LONGEST_NAME = 64
"""Of a member that is refused, in the words that say so."""


class ModelNotServed(BodyRefused):
    """The model is not one of this node's."""

    code = Code.NOT_FOUND
    reason = "MODEL_NOT_SERVED"
    status = 404
    type = "not_found_error"


class CacheSaltRefused(BodyRefused):
    """A client may not choose in whose prefix cache it looks."""

    reason = "CACHE_SALT_REFUSED"


class TooMuchAsked(BodyRefused):
    """A member that sizes the engine's memory or work is beyond its bound, or no number at all."""

    reason = "TOO_MUCH_ASKED"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a body that may be served asks."""

    model: str
    sampling: str
    """Canonical JSON: what the body has of `members.SAMPLING`, each in a string. A number, true, false and null are as
    they were written; all else may be a client's text, and is the digest of its JSON as `rewriting` writes it."""
    told: bytes
    """The body as the engine is to be asked; the very bytes that came where it is told all of it, and nothing else."""
    sequences: int


def read_body(
    body: bytes,
    served: frozenset[str],
    endpoint: Endpoint,
    lacks: Collection[str] = (),
    *,
    most_sequences: int = MOST_SEQUENCES,
    fetches: bool = False,
    calling: Calling | None = None,
    members: Mapping[str, Any] | None = None,
) -> Asked:
    """Return what the body asks there, which may be so many sequences. Raises `BodyRefused` or what is one.

    `lacks` names types of what a message is made of that the engine does not take, `fetches` says whether parts may
    name URLs that it judges, and `calling` is the help that it needs to call tools; `members` are the body's, where it
    was parsed before. It does not judge the model: some engines serve whatever name they are given. A body of many
    values takes long, and memory many times its length, and one that holds schemas takes long: it MUST be read beside
    the event loop, one at a time.
    """
    if members is None:
        members = parse(body)
    if "cache_salt" in members:
        raise CacheSaltRefused("cache_salt is not for clients to choose")
    model = members.get("model")
    if not is_text(model):
        raise BodyRefused("model must be a string")
    if model not in served:
        raise ModelNotServed("no such model is served here")
    _require_known(members, endpoint)
    _require_bounded(members)
    require_taken(members, endpoint, EngineTakes(frozenset(lacks), fetches))
    sequences = sequences_of(members, endpoint)
    if sequences > most_sequences:
        raise TooMuchAsked(
            f"the prompts, times n or best_of, may be {most_sequences} at most here: ask in several requests"
        )
    return Asked(model, sampling_of(members), _told(body, members, endpoint, calling), sequences)


def sampling_of(members: Mapping[str, Any]) -> str:
    """Return what a receipt says of a body's settings: see `Asked`. Raises `BodyRefused`."""
    try:
        named = {name: _named(value) for name, value in members.items() if name in SAMPLING}
    except JsonNotRewritable as error:
        raise BodyRefused("a setting is nested too deeply") from error
    return jcs.dumps(named).decode()


def _named(value: object) -> str:
    written = rewriting.dumps(value)
    may_hold_text = isinstance(value, list | dict) or is_text(value) or len(written) > _LONGEST_NUMBER
    return digest(written) if may_hold_text else written.decode()


def _told(body: bytes, members: Mapping[str, Any], endpoint: Endpoint, calling: Calling | None) -> bytes:
    told = {name: value for name, value in members.items() if name not in UNTOLD}
    if len(told) < len(members):
        try:
            body = rewriting.dumps(told)
        except JsonNotRewritable as error:
            raise BodyRefused("the body is nested too deeply") from error
    return body if calling is None else calling.ask(body, told, endpoint.protocol)


def _require_known(members: Mapping[str, Any], endpoint: Endpoint) -> None:
    known = KNOWN[endpoint]
    for name in members:
        if name not in known:
            raise MemberRefused(f"{name[:_LONGEST_NAME]!a} is not a member that is taken at {endpoint.path}")


def _require_bounded(members: Mapping[str, Any]) -> None:
    # Engines take the two together to mean the probabilities of all tokens of the prompt, over the whole vocabulary.
    if members.get("logprobs") is not None and members.get("echo") not in (None, False):
        raise TooMuchAsked("echo is not taken together with logprobs")
    for name, most in MOST.items():
        value = members.get(name)
        # Some engines read a number out of a text or a fraction, and some take a negative one for all there is.
        if value is not None and not isinstance(value, bool) and not _is_count(value, most):
            raise TooMuchAsked(f"{name} must be a whole number from 0 to {most}")
    for name, longest in LONGEST.items():
        value = members.get(name)
        if isinstance(value, list | dict) and len(value) > longest:
            raise TooMuchAsked(f"{name} must have at most {longest} entries")
    if (excess := schema_excess(members)) is not None:
        raise TooMuchAsked(excess)


def _is_count(value: object, most: int) -> bool:
    # A text that is longer than the bound's is more than it: JSON's numbers have no leading zeros.
    return isinstance(value, Number) and value.isdigit() and len(value) <= len(str(most)) and int(value) <= most


def parse(body: bytes) -> Mapping[str, Any]:
    """Return the body's members. Raises `BodyRefused`."""
    if has_more_values(body, MOST_VALUES):
        raise BodyRefused(f"the body has more than {MOST_VALUES} JSON values")
    if is_nested(body):
        raise BodyRefused(f"the body must be JSON of at most {MOST_LEVELS} levels")
    try:
        members = rewriting.loads(body)
    except JsonNotRewritable as error:
        # Of two members of one name this parser and the engine's may take different ones.
        raise BodyRefused("the body is not one valid JSON value in UTF-8 without repeated names") from error
    if not isinstance(members, dict):
        raise BodyRefused("the body must be a JSON object")
    return members
