"""It is responsible for a witness's folder: its keys, its book, and the policies of each log's mesh."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import structlog

from libs.transparency.note import VerifierKey
from services.witness.book import NAME as BOOK
from services.witness.book import Book
from services.witness.config import Config
from services.witness.cosigning import Cosigning, WatchedLog
from services.witness.evidence import KeyEvidence
from services.witness.keys import load_keys

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
