"""Runs a witness: `python -m services.witness <config.toml>`.

Exit status 3: what it remembers, or its key, is damaged or gone; 70: a write failed.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

from libs.entry import run
from libs.process import notify_ready, until_terminated
from services.witness.config import Config
from services.witness.listener import Submissions, serving_witness
from services.witness.opening import opened


async def serve(config: Config) -> None:
    """Cosign until terminated, or until a write fails."""
    with opened(config) as cosigning, ThreadPoolExecutor(1, thread_name_prefix="judge") as thread:
        submissions = Submissions(cosigning, thread)
        async with serving_witness(config, submissions), asyncio.TaskGroup() as tasks:
            broken = tasks.create_task(submissions.watch())
            notify_ready()
            await until_terminated()
            broken.cancel()


if __name__ == "__main__":
    sys.exit(run("witness", Config, serve))
