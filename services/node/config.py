"""It is responsible for what a node can be told."""

from __future__ import annotations

from dataclasses import dataclass

from libs.identity.member import MemberSettings
from services.node.launch import EngineSettings


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file."""

    member: MemberSettings
    registry: str
    """host:port of the registry."""
    engine: EngineSettings
    endpoint: str = ""
    """host:port under which routers reach this node; empty means member.listen."""
