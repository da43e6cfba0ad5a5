"""It is responsible for naming in the log who was refused at an address, by what it showed there.

A refusal alone does not tell a man in the middle from a member that was updated too early. What is named is what the
other side claimed: nothing of it is believed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from libs.errors import MeshError
from libs.identity.certificate import CertificateNotAccepted, parse
from libs.rpc.channel import PeerUnreachable, fetch_leaf

log = structlog.get_logger()


@contextmanager
def named_if_refused(address: str, leaf: bytes) -> Iterator[None]:
    """Around the judgement of who showed this leaf (DER) at an address: log its refusal, and pass that on."""
    try:
        yield
    except MeshError as refusal:
        _name(address, leaf, refusal)
        raise


async def name_stranger(address: str, server_name: str, timeout: float, refusal: MeshError) -> None:
    """Log whose certificate failed the handshake: it takes another one, which believes nothing, to see it."""
    try:
        leaf = await fetch_leaf(address, server_name=server_name, timeout=timeout)
    except PeerUnreachable:
        log.warning("refused who answered", address=address, reason=refusal.reason, detail=str(refusal))
        return
    _name(address, leaf, refusal)


def _name(address: str, leaf: bytes, refusal: MeshError) -> None:
    log.warning(
        "refused who answered",
        address=address,
        claims_to_be=_claimed_name(leaf),
        leaf_sha256=hashlib.sha256(leaf).hexdigest(),
        reason=refusal.reason,
        detail=str(refusal),
    )


def _claimed_name(leaf: bytes) -> str | None:
    try:
        return parse(leaf).spiffe_id
    except CertificateNotAccepted:
        return None
