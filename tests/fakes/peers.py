"""Appraised peers of a router that has joined: a link to each of their keys while they can be reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import grpc
import grpc.aio

from libs.identity.lease import Lease
from libs.identity.peers import PeerUnavailable
from tests.fakes.policies import KeeperTwin, PolicyTwin


@dataclass(frozen=True, slots=True)
class LinkTwin:
    """A connection to one key of a peer."""

    channel: grpc.aio.Channel
    lease: Lease


class PeerTwin:
    """An appraised peer: its lease, and a channel while it can be reached."""

    def __init__(self, target: str, lease: Lease | None) -> None:
        self.known = lease
        self.reachable = True
        self.renewed: Lease | None = None
        self.keeps_old_links = False
        self.refusal: str | None = None
        self.meanwhile: Callable[[], None] | None = None
        """What happens while it is being reached."""
        self._channel = grpc.aio.insecure_channel(target)

    @property
    def lease(self) -> Lease:
        return cast(Lease, self.known)

    def is_live(self, link: LinkTwin) -> bool:
        return self.known is not None and (link.lease is self.known or self.keeps_old_links)

    def is_newest(self, link: LinkTwin) -> bool:
        return link.lease is self.known

    async def link(self, timeout: float, preferred: LinkTwin | None = None) -> LinkTwin:
        if self.meanwhile is not None:
            self.meanwhile()
        if not self.reachable:
            raise PeerUnavailable("no answer")
        if self.renewed is not None:
            self.known = self.renewed
        if preferred is not None and self.is_live(preferred):
            return preferred
        return LinkTwin(self._channel, self.lease)

    async def channel(self, timeout: float) -> grpc.aio.Channel:
        return (await self.link(timeout)).channel

    async def close(self) -> None:
        await self._channel.close(None)


class MemberTwin:
    """A router that has joined: its policy, and a peer for each address."""

    def __init__(self, policy: KeeperTwin | None = None) -> None:
        self.policy: Any = PolicyTwin() if policy is None else policy
        self.peers: dict[str, PeerTwin] = {}

    def peer(self, role: str, target: str, *, answer_bytes: int = 0) -> PeerTwin:
        if target not in self.peers:
            self.peers[target] = PeerTwin("127.0.0.1:1", None)
            self.peers[target].reachable = False
        return self.peers[target]
