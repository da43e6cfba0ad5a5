"""One member never counts as two: who answers is settled by its certificate, before it is asked anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc.aio
import pytest

from services.ledger.replication.keyring_copy import NO_KEYRING
from services.ledger.replication.others import AnotherMember, OtherMember

from .members import ballot, heading


@dataclass(frozen=True)
class Certificate:
    instance: str


@dataclass(frozen=True)
class Lease:
    certificate: Certificate


class Answering:
    """Whoever answers at the address: appraised, and asked nothing here."""

    def __init__(self, instance: str) -> None:
        self.lease = Lease(Certificate(instance))

    async def channel(self, timeout: float) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel("127.0.0.1:1")


CALLS: tuple[Callable[[OtherMember], Awaitable[object]], ...] = (
    lambda other: other.vote(ballot(1), trial=True),
    lambda other: other.vote(ballot(1), trial=False),
    lambda other: other.append(heading(1), b""),
    lambda other: other.keep_keyring(NO_KEYRING),
    lambda other: other.read_keyring(),
)


@pytest.mark.parametrize("call", CALLS)
async def test_another_member_at_a_members_address_is_asked_nothing(
    call: Callable[[OtherMember], Awaitable[object]],
) -> None:
    with pytest.raises(AnotherMember):
        await call(OtherMember("two", Answering("three"), bytes(32)))
