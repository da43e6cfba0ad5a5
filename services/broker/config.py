"""It is responsible for what a broker can be told."""

from __future__ import annotations

from dataclasses import dataclass

from libs.identity.member import MemberSettings
from services.broker.supervision import NatsSettings


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file."""

    member: MemberSettings
    nats: NatsSettings
