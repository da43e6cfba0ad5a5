"""It is responsible for what is measured of an OpenAI-compatible server that is none of the engines the node knows.

Of vLLM's arguments those are known that leave true what the node says of it; of this server's none are. So its whole
command is measured, and the node fills in what only it can say. That the command loads the weights that it is given,
fetches nothing and writes no text down is the word of those who measure it and of the policy that lists it. That
tenants share nothing of each other's the server must show itself, before it is asked for anybody: see
`services.node.proving`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from libs.aci.endpoints import CHAT, COMPLETIONS, COUNT_TOKENS, MESSAGES, Endpoint, paths
from libs.errors import Code, MeshError

SERVER = "openai-server"
"""The kind; the claimed name of the engine begins with it, so that nobody takes it for one that the node knows."""
WEIGHTS, SOCKET = "{weights}", "{socket}"
MODEL, PARALLEL, CONTEXT_TOKENS = "{model}", "{parallel}", "{context_tokens}"
_NEEDED = (WEIGHTS, SOCKET, PARALLEL)
_FILLED = frozenset({*_NEEDED, MODEL, CONTEXT_TOKENS})
_PLACE = re.compile(r"\{[A-Za-z_]+\}")
_OFFERABLE = frozenset({CHAT, COMPLETIONS, MESSAGES, COUNT_TOKENS})
"""Embeddings do not say how much of their input was cached, and responses are kept by servers that nobody told to."""


class EngineServerRefused(MeshError):
    """With what is measured of the server the node could not keep what it promises."""

    code = Code.INVALID_ARGUMENT
    reason = "ENGINE_SERVER_REFUSED"


@dataclass(frozen=True, slots=True)
class EngineServer:
    """A server, its arguments and endpoints apart."""

    program: str
    """Absolute path of the program in the image."""
    name: str
    """What answers, engine and version, as those who measure it call it."""
    key_variable: str
    """The environment variable from which it takes the API key that it wants of every request."""
    cache_salt: bool
    """Whether it is given a salt with each request: it may then keep prompts for later ones with the same salt."""


def require_usable(arguments: Sequence[str], endpoints: Collection[Endpoint]) -> None:
    """Raise `EngineServerRefused` unless the arguments have places for weights, socket and how many at once, and no
    others that nobody fills, and unless it is asked only where it can show that it keeps prompts apart."""
    places = {place for argument in arguments for place in _PLACE.findall(argument)}
    if unknown := sorted(places - _FILLED):
        raise EngineServerRefused(f"the server's arguments have {unknown[0][:64]}, which the node does not fill in")
    if missing := [place for place in _NEEDED if place not in places]:
        raise EngineServerRefused(f"the server's arguments have no {missing[0]}")
    if others := set(endpoints) - _OFFERABLE:
        raise EngineServerRefused(f"an OpenAI-compatible server is not asked at {paths(others)[0]}")


def fill(argument: str, values: Mapping[str, str]) -> str:
    """Return the argument with these values in their places, at once: what is filled in is not read again."""
    return _PLACE.sub(lambda place: values.get(place[0], place[0]), argument)
