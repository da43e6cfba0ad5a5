"""Keys from the KMS: sealed to this process, of the name and epoch asked for, waited for while the KMS is away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from teemesh.kms.v1 import kms_pb2

from libs.errors import Code, MeshError
from libs.identity.sealed import ReceiverKey, SealedKeyRefused, release_info, seal
from services.ledger.keys import ReleasedKey, ReleasedKeys, ReleasedKeyWrong, while_away

LEDGER = "spiffe://mesh.test/ledger/1"


class Kms:
    """Releases what it is told to, which need not be what was asked for."""

    def __init__(self, receiver: ReceiverKey) -> None:
        self.receiver = receiver
        self.key = b"\x05" * 32
        self.epoch = 3
        self.sealed_for = "ledger-keyring"
        self.calls = 0

    async def release(
        self, request: kms_pb2.ReleaseKeyRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> kms_pb2.ReleaseKeyResponse:
        self.calls += 1
        info = release_info(self.sealed_for, self.epoch, LEDGER)
        return kms_pb2.ReleaseKeyResponse(sealed_key=seal(self.key, self.receiver.public.hex(), info), epoch=self.epoch)


class Peer:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def channel(self, timeout: float) -> grpc.aio.Channel:
        return self._channel


@asynccontextmanager
async def served(kms: Kms, folder: Path) -> AsyncIterator[ReleasedKeys]:
    server = grpc.aio.server()
    method = grpc.unary_unary_rpc_method_handler(
        kms.release,
        request_deserializer=kms_pb2.ReleaseKeyRequest.FromString,
        response_serializer=kms_pb2.ReleaseKeyResponse.SerializeToString,
    )
    service = grpc.method_handlers_generic_handler("teemesh.kms.v1.KmsService", {"ReleaseKey": method})
    server.add_generic_rpc_handlers((service,))
    address = f"unix:{folder}/kms.sock"
    server.add_insecure_port(address)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield ReleasedKeys(Peer(channel), kms.receiver, lambda: LEDGER)
    finally:
        await server.stop(None)


@pytest.fixture
def kms() -> Kms:
    return Kms(ReceiverKey())


async def test_a_key_is_opened_and_asked_for_once(kms: Kms, tmp_path: Path) -> None:
    async with served(kms, tmp_path) as keys:
        assert await keys.release("ledger-keyring") == ReleasedKey(3, kms.key)
        assert await keys.release("ledger-keyring", 3) == ReleasedKey(3, kms.key)
    assert kms.calls == 1


async def test_a_key_that_was_forgotten_is_asked_for_again_and_no_other(kms: Kms, tmp_path: Path) -> None:
    async with served(kms, tmp_path) as keys:
        await keys.release("ledger-keyring", 3)
        keys.forget("ledger-vault/another")
        await keys.release("ledger-keyring", 3)
        assert kms.calls == 1
        keys.forget("ledger-keyring")
        await keys.release("ledger-keyring", 3)
    assert kms.calls == 2


async def test_another_epoch_than_the_one_asked_for_is_refused(kms: Kms, tmp_path: Path) -> None:
    async with served(kms, tmp_path) as keys:
        with pytest.raises(ReleasedKeyWrong):
            await keys.release("ledger-keyring", 2)


async def test_a_key_of_another_name_does_not_open(kms: Kms, tmp_path: Path) -> None:
    kms.sealed_for = "ledger-resume"
    async with served(kms, tmp_path) as keys:
        with pytest.raises(SealedKeyRefused):
            await keys.release("ledger-keyring")


async def test_something_that_is_no_key_is_refused(kms: Kms, tmp_path: Path) -> None:
    kms.key = b"short"
    async with served(kms, tmp_path) as keys:
        with pytest.raises(ReleasedKeyWrong):
            await keys.release("ledger-keyring")


class Refusal(MeshError):
    def __init__(self, code: Code) -> None:
        super().__init__("no")
        vars(self).update(code=code, reason="NO")


async def test_a_kms_that_is_away_is_waited_for_and_a_refusal_is_not() -> None:
    failures = [Refusal(Code.UNAVAILABLE), Refusal(Code.DEADLINE_EXCEEDED)]

    async def ask() -> str:
        if failures:
            raise failures.pop()
        return "key"

    assert await while_away(ask, "name") == "key"
    failures.append(Refusal(Code.PERMISSION_DENIED))
    with pytest.raises(Refusal):
        await while_away(ask, "name")
