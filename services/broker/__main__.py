"""Runs a broker: `python -m services.broker <config.toml>`."""

from __future__ import annotations

import sys

from libs.entry import run
from libs.identity.member import join
from libs.process import notify_ready, until_terminated
from services.broker.config import Config
from services.broker.running import running


async def serve(config: Config) -> None:
    """Wire the broker and serve until terminated."""
    async with join(config.member, "broker", {}) as member, running(member, config.nats) as broker:
        await broker.nats.until_ready()
        broker.serving.ready()
        notify_ready()
        await until_terminated()


if __name__ == "__main__":
    sys.exit(run("broker", Config, serve))
