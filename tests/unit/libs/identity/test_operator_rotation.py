"""Operators change by a policy version: who runs follows, who starts later joins, and who left signs nothing more."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.errors import MeshError
from libs.identity.freshness import PolicyKeeper, PolicyUnknown
from libs.identity.statements import take_statement
from libs.policy.compose import Anchors
from libs.policy.document import NO_PREVIOUS, read
from libs.policy.revocation import Revocation, RevocationKind, RevocationSet, parse_revocation, sign_revocation
from libs.policy.signatures import SignedPolicy, parse_signed, sign
from libs.policy.statement import Statement
from services.kms.revocation import Revocations
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh

COMPOSE = "ab" * 32
Keys = Sequence[Ed25519PrivateKey]


@dataclass(slots=True)
class Rotation:
    """A chain of five operators' policies, as the KMS would tell it.

    Version 1 is of operators 0, 1 and 2; version 2 of 1, 3 and 4; version 3 follows it. Two always sign.
    """

    mesh: JoinedMesh
    operators: Keys
    signed: dict[int, bytes] = field(default_factory=dict)
    revoked: list[bytes] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)

    def draft(self, version: int, members: Sequence[int]) -> dict[str, Any]:
        previous = read_policy(self.signed[version - 1]).digest if version > 1 else NO_PREVIOUS
        keys = [self.operators[index].public_key().public_bytes_raw().hex() for index in members]
        operators = {"keys": keys, "threshold": 2}
        return {**self.mesh.draft, "version": version, "previous": previous.hex(), "operators": operators}

    def sign(self, draft: Mapping[str, Any], *signers: int) -> bytes:
        policy = read(dict(draft))
        return SignedPolicy(policy, tuple(sign(policy.document, self.operators[index]) for index in signers)).document

    def anchors(self, *members: int) -> Anchors:
        keys = tuple(self.operators[index].public_key().public_bytes_raw() for index in members)
        return Anchors("router", TRUST_DOMAIN, keys, 2)

    def keeper(self, folder: str, seed: int, *members: int) -> PolicyKeeper:
        """A service with this seed, measured with these operators."""
        return PolicyKeeper(self.mesh.folder / folder / "policy", self.signed[seed], self.anchors(*members))

    def revocation(self, operator: int, value: str = COMPOSE) -> bytes:
        revocation = Revocation(TRUST_DOMAIN, RevocationKind.MEASUREMENT, value, "a test", 1)
        return sign_revocation(revocation, self.operators[operator]).document

    def statement(self) -> Statement:
        newest = max(self.signed)
        known = RevocationSet().union(map(parse_revocation, self.revoked))
        now = int(time.time() * 1000)
        return Statement(newest, read_policy(self.signed[newest]).digest, known.number, now, known.digest)

    async def watch(self) -> AsyncGenerator[Statement, None]:
        yield self.statement()

    async def policy(self, version: int) -> bytes:
        self.asked.append(version)
        if version not in self.signed:
            raise PolicyUnknown(f"no policy version {version} here")
        return self.signed[version]

    async def revocations(self) -> Sequence[bytes]:
        return self.revoked


def read_policy(signed: bytes) -> Any:
    return parse_signed(signed).policy


@pytest.fixture
def rotation(mesh: JoinedMesh) -> Rotation:
    rotation = Rotation(mesh, (*mesh.operators, Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()))
    rotation.signed[1] = rotation.sign(rotation.draft(1, (0, 1, 2)), 0, 1)
    rotation.signed[2] = rotation.sign(rotation.draft(2, (1, 3, 4)), 0, 1, 3)
    rotation.signed[3] = rotation.sign(rotation.draft(3, (1, 3, 4)), 3, 4)
    return rotation


def reason(error: pytest.ExceptionInfo[MeshError]) -> str:
    return error.value.reason


async def test_a_service_that_runs_follows_to_the_new_operators_and_again_after_a_restart(rotation: Rotation) -> None:
    keeper = rotation.keeper("running", 1, 0, 1, 2)
    await take_statement(rotation.statement(), rotation, keeper)
    assert keeper.require_fresh().version == 3
    assert rotation.keeper("running", 1, 0, 1, 2).current == keeper.current


async def test_a_service_with_the_old_anchors_that_starts_afterwards_walks_the_chain(rotation: Rotation) -> None:
    for seed in (1, 2):
        keeper = rotation.keeper(f"old-{seed}", seed, 0, 1, 2)
        await take_statement(rotation.statement(), rotation, keeper)
        assert keeper.require_fresh().version == 3


async def test_a_service_with_the_new_anchors_starts_from_the_version_that_brought_them(rotation: Rotation) -> None:
    for seed in (2, 3):
        keeper = rotation.keeper(f"new-{seed}", seed, 1, 3, 4)
        await take_statement(rotation.statement(), rotation, keeper)
        assert keeper.require_fresh().version == 3


@pytest.mark.parametrize(("seed", "members"), [(1, (1, 3, 4)), (3, (0, 1, 2))], ids=["new anchors", "old anchors"])
def test_a_seed_that_the_measured_operators_did_not_sign_starts_nothing(
    rotation: Rotation, seed: int, members: tuple[int, ...]
) -> None:
    with pytest.raises(MeshError) as error:
        rotation.keeper("k", seed, *members)
    assert reason(error) == "POLICY_SIGNATURES_INSUFFICIENT"


@pytest.mark.parametrize(
    "signers", [(0, 3), (0, 1), (3, 4), (0, 3, 4), (0, 1, 2)], ids=lambda signers: f"signed by {signers}"
)
def test_a_version_that_lacks_one_set_changes_no_operators(rotation: Rotation, signers: tuple[int, ...]) -> None:
    keeper = rotation.keeper("k", 1, 0, 1, 2)
    with pytest.raises(MeshError) as error:
        keeper.accept(rotation.sign(rotation.draft(2, (1, 3, 4)), *signers))
    assert reason(error) == "POLICY_SIGNATURES_INSUFFICIENT"
    assert keeper.current.version == 1


@pytest.mark.parametrize("signers", [(0, 2), (0, 3), (0, 3, 4)], ids=lambda signers: f"signed by {signers}")
def test_an_operator_who_was_removed_signs_no_further_version(rotation: Rotation, signers: tuple[int, ...]) -> None:
    keeper = rotation.keeper("k", 1, 0, 1, 2)
    keeper.accept(rotation.signed[2])
    with pytest.raises(MeshError) as error:
        keeper.accept(rotation.sign(rotation.draft(3, (1, 3, 4)), *signers))
    assert reason(error) == "POLICY_SIGNATURES_INSUFFICIENT"


async def test_an_operator_who_was_removed_revokes_nothing_more_and_one_who_came_does(rotation: Rotation) -> None:
    recorded: list[bytes] = []

    class Recording:
        async def revocation(self, document: bytes) -> None:
            recorded.append(document)

    keeper = rotation.keeper("kms", 1, 0, 1, 2)
    keeper.accept(rotation.signed[2])
    revocations = Revocations(keeper, Recording())  # type: ignore[arg-type]
    with pytest.raises(MeshError) as error:
        await revocations.revoke(rotation.revocation(0))
    assert reason(error) == "REVOCATION_SIGNATURE_INVALID"
    assert recorded == []
    await revocations.revoke(rotation.revocation(4))
    assert keeper.current.revoked.compose_hashes == {COMPOSE}


async def test_what_an_operator_revoked_before_they_left_counts_for_who_never_knew_them(rotation: Rotation) -> None:
    rotation.revoked = [rotation.revocation(0)]
    keeper = rotation.keeper("new", 3, 1, 3, 4)
    await take_statement(rotation.statement(), rotation, keeper)
    assert keeper.require_fresh().revoked.compose_hashes == {COMPOSE}
    assert rotation.asked == [2, 1]
    again = rotation.keeper("new", 3, 1, 3, 4)
    assert again.current == keeper.current
    assert [again.signed(version) for version in (1, 2, 3)] == [rotation.signed[version] for version in (1, 2, 3)]


async def test_only_as_many_versions_are_asked_for_as_it_takes(rotation: Rotation) -> None:
    rotation.revoked = [rotation.revocation(1)]
    keeper = rotation.keeper("new", 3, 1, 3, 4)
    await take_statement(rotation.statement(), rotation, keeper)
    assert rotation.asked == []


@pytest.mark.parametrize("told", ["a version of strangers", "another version", "none", "a torn one"])
async def test_a_forged_earlier_version_makes_nobody_an_operator(rotation: Rotation, told: str) -> None:
    stranger = Ed25519PrivateKey.generate()
    forger = Rotation(rotation.mesh, (stranger, *rotation.operators[1:]))
    forger.signed[1] = forger.sign(forger.draft(1, (0, 1, 2)), 0, 1)
    genuine = dict(rotation.signed)
    match told:
        case "a version of strangers":
            rotation.signed[2] = forger.sign({**forger.draft(2, (0, 1, 2))}, 0, 1)
        case "another version":
            rotation.signed[2] = genuine[1]
        case "none":
            del rotation.signed[2]
        case _:
            rotation.signed[2] = genuine[2][:-1]
    mine, theirs = rotation.revocation(3, "cd" * 32), forger.revocation(0)
    rotation.revoked = [theirs, mine]
    keeper = rotation.keeper("new", 3, 1, 3, 4)
    with pytest.raises(MeshError) as error:
        await take_statement(rotation.statement(), rotation, keeper)
    assert reason(error) == "REVOCATION_SIGNATURE_INVALID"
    # What an operator signed counts, whatever came with it, and the service is not fresh by this statement.
    assert keeper.current.revoked.compose_hashes == {"cd" * 32}
    with pytest.raises(MeshError) as error:
        keeper.require_fresh()
    assert reason(error) == "POLICY_STALE"
    assert keeper.oldest == 3


async def test_a_strangers_revocation_is_refused_after_the_whole_chain_was_asked_for(rotation: Rotation) -> None:
    forger = Rotation(rotation.mesh, (Ed25519PrivateKey.generate(),))
    rotation.revoked = [forger.revocation(0)]
    keeper = rotation.keeper("new", 3, 1, 3, 4)
    with pytest.raises(MeshError) as error:
        await take_statement(rotation.statement(), rotation, keeper)
    assert reason(error) == "REVOCATION_SIGNATURE_INVALID"
    assert keeper.oldest == 1


def test_a_service_that_gets_a_later_seed_still_serves_the_earlier_ones(rotation: Rotation) -> None:
    first = rotation.keeper("kms", 1, 0, 1, 2)
    first.accept(rotation.signed[2])
    later = rotation.keeper("kms", 2, 1, 3, 4)
    assert (later.seed_version, later.oldest) == (2, 1)
    assert [later.signed(version) for version in (1, 2)] == [rotation.signed[1], rotation.signed[2]]
    assert later.find(read_policy(rotation.signed[1]).digest).version == 1
    with pytest.raises(PolicyUnknown):
        later.find(bytes(32))


def test_an_earlier_version_on_disk_that_the_seed_does_not_follow_refuses_to_start(
    rotation: Rotation, mesh: JoinedMesh
) -> None:
    folder: Path = mesh.folder / "k" / "policy"
    folder.mkdir(parents=True)
    another = {**rotation.draft(2, (1, 3, 4)), "models": {"m": [COMPOSE]}}
    (folder / "2.json").write_bytes(rotation.sign(another, 0, 1, 3))
    with pytest.raises(MeshError) as error:
        rotation.keeper("k", 3, 1, 3, 4)
    assert reason(error) == "POLICY_VERSION_NOT_NEXT"
