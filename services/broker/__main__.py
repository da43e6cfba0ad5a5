"""Runs a broker: `python -m services.broker <config.toml>`."""

from __future__ import annotations

import sys

from libs.entry import run
from libs.identity.member import Member, join
from libs.process import notify_ready, until_terminated
from services.broker.config import Config
from services.broker.supervision import open_broker


class MemberCredentials:
    """This member's identity, as nats-server shows it."""

    def __init__(self, member: Member) -> None:
        self._member = member

    @property
    def credential_pem(self) -> bytes:
        current = self._member.identity.current
        return current.certificate.pem + current.key_pem

    @property
    def ca_pem(self) -> bytes:
        return self._member.ca_pem

    @property
    def trust_domain(self) -> str:
        return self._member.trust_domain

    async def renewed(self) -> None:
        await self._member.identity.renewed()


async def serve(config: Config) -> None:
    """Wire the broker and serve until terminated."""
    settings = config.member
    async with (
        join(settings, "broker", {}) as member,
        open_broker(
            f"broker-{settings.instance}", config.nats, MemberCredentials(member), settings.state_dir
        ) as broker,
        member.serve([]) as serving,
    ):
        await broker.until_ready()
        serving.ready()
        notify_ready()
        await until_terminated()


if __name__ == "__main__":
    sys.exit(run("broker", Config, serve))
