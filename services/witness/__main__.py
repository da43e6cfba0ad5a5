"""Runs a witness: `python -m services.witness <config.toml>`.

Exit status 3: what it remembers, or its key, is damaged or gone; 70: a write failed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import structlog

from libs.entry import run
from libs.process import notify_ready, until_terminated
from libs.transparency.note import VerifierKey
from services.witness.book import NAME as BOOK
from services.witness.book import Book
from services.witness.config import Config
from services.witness.cosigning import Cosigning, WatchedLog
from services.witness.evidence import KeyEvidence
from services.witness.keys import load_keys
from services.witness.listener import Submissions, serving_witness

log = structlog.get_logger()


@contextmanager
def opened(config: Config) -> Iterator[Cosigning]:
    """Open what the witness remembers while the body runs. Raises what is wrong with it."""
    config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = load_keys(config.state_dir, config.name, may_draw=not (config.state_dir / BOOK).exists())
    watched = {
        each.origin: WatchedLog(
            tuple(VerifierKey.parse(key) for key in each.verifier_keys),
            None if each.attested is None else KeyEvidence(config.state_dir, each.origin, each.attested),
        )
        for each in config.logs
    }
    with closing(Book(config.state_dir, keys.public)) as book:
        for key in keys.public:
            log.info("cosigns by", key=key.text()[:120])
        yield Cosigning(book, keys, watched, time.time)


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
