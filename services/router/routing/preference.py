"""Responsible for which of the nodes that may serve a request is used: a pure function of how each stands now.

It knows nodes by name. Whether one may serve is asked first, of each that it looks at, and nothing here changes that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import TypeVar

from libs.errors import Code, MeshError
from services.router.routing.settings import RoutingSettings

N = TypeVar("N")

_MAX_NEIGHBOURS = 8
"""How many nodes are looked at in the order of a beginning."""


class NodesFull(MeshError):
    """Every node that may serve has as many requests as it is to be given."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "NODES_FULL"


def prefer(
    ranked: Iterable[str],
    alike: Iterable[str],
    *,
    suiting: Callable[[str], N | None],
    admits: Callable[[str], bool],
    busyness: Callable[[str], float],
    settings: RoutingSettings,
) -> N | None:
    """Return what `suiting` gives of the node to use, None where it gives nothing of any.

    `ranked` names nodes, the least busy first, `alike` those that go on with what begins like this request. `admits`
    says whether a node is not avoided, and `busyness` how many requests it has relative to its capacity. Raises
    `NodesFull`.
    """
    avoided: tuple[str, N] | None = None
    for name in ranked:
        if (node := suiting(name)) is None:
            continue
        if not admits(name):
            avoided = avoided or (name, node)
            continue
        most = _with_room(name, busyness, settings) + settings.affinity_slack
        for other in islice(alike, _MAX_NEIGHBOURS):
            has_room = busyness(other) <= most and busyness(other) < settings.queue_factor
            if has_room and admits(other) and (going_on := suiting(other)) is not None:
                return going_on
        return node
    if avoided is None:
        return None
    _with_room(avoided[0], busyness, settings)
    return avoided[1]


def _with_room(least_busy: str, busyness: Callable[[str], float], settings: RoutingSettings) -> float:
    """Return how busy the least busy node is. Raises `NodesFull` if even that is to be given no more."""
    least = busyness(least_busy)
    if least >= settings.queue_factor:
        raise NodesFull("every node that may serve this has as many requests as it is to be given")
    return least
