"""It is responsible for what a node can be told."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from libs.identity.gpu_watch import GpuSettings
from libs.identity.member import MemberSettings
from services.node.launch import EngineSettings
from services.node.reports import ReportSettings

_REGION = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file."""

    member: MemberSettings
    registry: tuple[str, ...]
    """host:port of the mesh listener of each instance of the registry, in order of preference."""
    engine: EngineSettings
    gpus: GpuSettings = field(default_factory=GpuSettings)
    reports: ReportSettings = field(default_factory=ReportSettings)
    endpoint: str = ""
    """host:port under which routers reach this node; empty means member.listen."""
    region: str = ""
    """Where this node runs, as policies name regions; stands in the evidence claims. Empty: nothing is claimed."""

    def __post_init__(self) -> None:
        if not self.registry:
            raise ValueError("registry must name at least one instance")
        if self.region and not _REGION.fullmatch(self.region):
            raise ValueError("region must be lower-case letters, digits and inner hyphens, at most 63")
