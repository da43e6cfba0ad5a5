"""What a service knows when its disk takes nothing: no newer policy, every revocation, and nothing for ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from libs.errors import Code, MeshError
from libs.identity.freshness import MAX_SILENCE_SECONDS, PolicyKeeper
from libs.policy.revocation import RevocationKind
from libs.policy.statement import Statement
from tests.fakes.full_disk import files_limited_to
from tests.fakes.joined_mesh import Clock, JoinedMesh, hear

COMPOSE = "ab" * 32


def refused(act: Callable[[], object]) -> MeshError:
    with pytest.raises(MeshError) as error, files_limited_to(0):
        act()
    return error.value


def revocation(mesh: JoinedMesh) -> bytes:
    return mesh.revocation(RevocationKind.MEASUREMENT, COMPOSE)


def drafts(keeper_folder: Path) -> list[Path]:
    return [path for path in keeper_folder.rglob("*") if path.name.startswith(".")]


def test_a_policy_that_cannot_be_kept_is_not_in_force_and_can_be_taken_later(mesh: JoinedMesh) -> None:
    keeper = mesh.keeper("k")
    signed = mesh.successor(keeper.current)
    error = refused(lambda: keeper.accept(signed))
    assert (error.reason, error.code) == ("POLICY_NOT_KEPT", Code.UNAVAILABLE)
    assert keeper.current.version == 1
    assert drafts(mesh.folder / "k") == []
    keeper.accept(signed)
    assert mesh.keeper("k").current.version == 2


def test_a_service_that_cannot_keep_its_policy_works_no_longer_than_one_that_hears_of_none(mesh: JoinedMesh) -> None:
    clock = Clock()
    keeper = mesh.keeper("k", clock=clock)
    refused(lambda: keeper.accept(mesh.successor(keeper.current)))
    stated = Statement(2, bytes(32), 0, int(clock.now * 1000), keeper.revocations.digest)
    clock.now += MAX_SILENCE_SECONDS + 1
    assert reason_of(lambda: keeper.note(stated)) == "POLICY_STALE"
    assert reason_of(keeper.require_fresh) == "POLICY_STALE"


def reason_of(act: Callable[[], object]) -> str:
    with pytest.raises(MeshError) as error:
        act()
    return error.value.reason


def test_a_seed_that_cannot_be_kept_is_refused_with_a_reason(mesh: JoinedMesh) -> None:
    folder = mesh.folder / "new"
    assert refused(lambda: PolicyKeeper(folder, mesh.seed, mesh.anchors("router"))).reason == "POLICY_NOT_KEPT"


def test_a_revocation_counts_although_it_cannot_be_kept_and_is_kept_once_it_can(mesh: JoinedMesh) -> None:
    keeper, signed = mesh.keeper("k"), revocation(mesh)
    for _ in range(2):
        # Nobody is told that it is kept, however often it comes.
        error = refused(lambda: keeper.accept_revocations([signed]))
        assert (error.reason, error.code) == ("REVOCATIONS_NOT_KEPT", Code.UNAVAILABLE)
        assert keeper.current.revoked.compose_hashes == {COMPOSE}
    assert mesh.keeper("k").revocations.number == 0
    keeper.accept_revocations([])
    assert mesh.keeper("k").current.revoked.compose_hashes == {COMPOSE}
    hear(keeper, Clock().now)


def test_a_refusal_among_those_that_cannot_be_kept_is_told(mesh: JoinedMesh) -> None:
    keeper = mesh.keeper("k")
    elsewhere = mesh.revocation(RevocationKind.MEASUREMENT, COMPOSE, mesh="mesh.other")
    error = refused(lambda: keeper.accept_revocations([elsewhere, revocation(mesh)]))
    assert error.reason == "REVOCATION_OF_ANOTHER_MESH"
    assert keeper.current.revoked.compose_hashes == {COMPOSE}
