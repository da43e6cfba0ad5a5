"""What changes while the KMS waits for the ledger counts: nothing goes out on a judgement that is overtaken by then."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from libs.errors import MeshError
from libs.identity.sealed import ReceiverKey
from libs.policy.releases import KeyAlgorithm
from services.kms.joining import own_subject
from tests.contract import test_kms_keys as keys
from tests.contract.test_kms_keys import HELD, SIGNED_FOR
from tests.contract.test_kms_replication import newcomer, order
from tests.fakes.joined_mesh import JoinedMesh, KmsCore
from tests.fakes.kms_callers import calling, operator
from tests.fakes.refusals import refusal
from tests.fakes.running_kms import RunningKms, running_kms


@pytest.fixture
async def running(mesh: JoinedMesh, kms: KmsCore) -> AsyncIterator[RunningKms]:
    async with running_kms(mesh, kms) as kms_service:
        yield kms_service


def enact(mesh: JoinedMesh, running: RunningKms, **changes: object) -> None:
    running.core.policy.accept(mesh.successor(running.core.policy.current, **changes))


async def test_a_key_that_may_only_sign_by_then_is_not_released(mesh: JoinedMesh, running: RunningKms) -> None:
    async def forbid() -> None:
        rules = [{**rule, "use": "sign"} if rule["name"] == HELD else rule for rule in mesh.draft["key_releases"]]
        enact(mesh, running, key_releases=rules)

    running.log.meanwhile = forbid
    async with calling(mesh, running, "agent", {"hpke_key": ReceiverKey().public.hex()}) as (stub, _):
        assert await refusal(keys.release(stub, HELD, KeyAlgorithm.ED25519)) == "KEY_CHANGED_MEANWHILE"
        assert await refusal(keys.release(stub, HELD, KeyAlgorithm.ED25519)) == "KEY_NOT_RELEASED"


async def test_an_epoch_that_is_the_newest_no_more_signs_nothing(mesh: JoinedMesh, running: RunningKms) -> None:
    async def rotate() -> None:
        async with operator(running) as ada:
            await keys.rotate(ada, SIGNED_FOR, 2)

    running.log.meanwhile = rotate
    async with calling(mesh, running, "agent") as (stub, _):
        assert await refusal(keys.have_signed(stub, SIGNED_FOR)) == "KEY_CHANGED_MEANWHILE"
        await keys.have_signed(stub, SIGNED_FOR)


async def test_a_policy_that_says_the_same_of_a_key_changes_nothing(mesh: JoinedMesh, running: RunningKms) -> None:
    async def publish() -> None:
        enact(mesh, running)

    running.log.meanwhile = publish
    async with calling(mesh, running, "agent") as (stub, _):
        await keys.have_signed(stub, SIGNED_FOR)
    assert running.core.policy.current.version == 2


async def test_the_root_is_not_given_on_an_order_that_counts_no_more(mesh: JoinedMesh, running: RunningKms) -> None:
    async def replace_operators() -> None:
        names = [key.public_key().public_bytes_raw().hex() for key in mesh.operators]
        left = {**mesh.draft["operators"], "keys": sorted(names[1:])}
        draft = {**mesh.draft, "version": 2, "previous": running.core.policy.current.digest.hex(), "operators": left}
        running.core.policy.accept(mesh.sign(draft, (0, 1, 2)))

    async with newcomer(mesh, running) as second:
        given = order(mesh, own_subject(second.member), (0, 1))
        running.log.meanwhile = replace_operators
        with pytest.raises(MeshError) as refused:
            await second.receive(given)
        assert refused.value.reason == "ORDER_SIGNATURES_INSUFFICIENT"
