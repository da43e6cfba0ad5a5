"""The policy moves forward only, and only fresh news keeps a service working."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.errors import MeshError
from libs.identity.freshness import MAX_SILENCE_SECONDS, PolicyKeeper, PolicyStale, PolicyUnreadable, load_keeper
from libs.policy.compose import Anchors
from libs.policy.statement import Statement
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh, hear


@pytest.fixture
def clock() -> Clock:
    return Clock()


def statement(
    keeper: PolicyKeeper, now: float, *, version: int | None = None, digest: bytes | None = None
) -> Statement:
    current = keeper.current
    return Statement(version or current.version, digest or current.digest, 0, int(now * 1000))


def test_before_the_first_statement_nothing_is_fresh(mesh: JoinedMesh) -> None:
    with pytest.raises(PolicyStale, match="no policy statement from the KMS yet"):
        mesh.keeper("k", fresh=False).require_fresh()


def test_silence_ends_freshness_and_a_newer_statement_renews_it(mesh: JoinedMesh, clock: Clock) -> None:
    keeper = mesh.keeper("k", clock=clock)
    clock.now += MAX_SILENCE_SECONDS - 1
    assert keeper.require_fresh() is keeper.current
    clock.now += 2
    with pytest.raises(PolicyStale, match="for 30"):
        keeper.require_fresh()
    hear(keeper, clock.now)
    assert keeper.require_fresh() is keeper.current


def test_a_replayed_or_older_statement_refreshes_nothing(mesh: JoinedMesh, clock: Clock) -> None:
    keeper = mesh.keeper("k", clock=clock)
    replayed, older = statement(keeper, clock.now), statement(keeper, clock.now - 100)
    clock.now += MAX_SILENCE_SECONDS + 1
    for stale in (replayed, older):
        keeper.note(stale)
        with pytest.raises(PolicyStale):
            keeper.require_fresh()


def test_an_old_statement_is_not_fresh_to_a_service_that_just_started(mesh: JoinedMesh, clock: Clock) -> None:
    keeper = mesh.keeper("k", clock=clock, fresh=False)
    keeper.note(statement(keeper, clock.now - MAX_SILENCE_SECONDS - 1))
    with pytest.raises(PolicyStale):
        keeper.require_fresh()


def test_a_statement_from_the_future_is_refused(mesh: JoinedMesh, clock: Clock) -> None:
    keeper = mesh.keeper("k", clock=clock, fresh=False)
    with pytest.raises(PolicyStale, match="more than a minute ahead"):
        keeper.note(statement(keeper, clock.now + 61))
    keeper.note(statement(keeper, clock.now + 59))
    assert keeper.require_fresh() is keeper.current


def test_a_statement_of_another_policy_refreshes_nothing(mesh: JoinedMesh, clock: Clock) -> None:
    keeper = mesh.keeper("k", clock=clock, fresh=False)
    for wrong in (statement(keeper, clock.now, version=2), statement(keeper, clock.now, digest=bytes(32))):
        with pytest.raises(PolicyStale, match="the KMS states policy"):
            keeper.note(wrong)
    with pytest.raises(PolicyStale):
        keeper.require_fresh()


def test_an_expired_policy_is_refused_however_fresh(mesh: JoinedMesh, clock: Clock) -> None:
    keeper = mesh.keeper("k", clock=clock)
    clock.now = mesh.draft["not_after"]
    hear(keeper, clock.now)
    with pytest.raises(MeshError) as error:
        keeper.require_fresh()
    assert error.value.reason == "POLICY_NOT_VALID_NOW"


async def test_policy_goes_forward_by_one_and_survives_a_restart(mesh: JoinedMesh) -> None:
    keeper = mesh.keeper("k")
    second = mesh.successor(keeper.current)
    assert keeper.accept(second).version == 2
    for wrong in (mesh.seed, second, mesh.successor(keeper.current, version=4)):
        with pytest.raises(MeshError) as error:
            keeper.accept(wrong)
        assert error.value.reason == "POLICY_VERSION_NOT_NEXT"
    again = mesh.keeper("k")
    assert again.current.digest == keeper.current.digest
    assert [again.signed(version) for version in (0, 1, 2)] == [second, mesh.seed, second]
    for unknown in (3, 99):
        with pytest.raises(MeshError) as error:
            again.signed(unknown)
        assert error.value.reason == "POLICY_UNKNOWN"


def test_a_policy_that_too_few_signed_is_refused(mesh: JoinedMesh) -> None:
    keeper = mesh.keeper("k")
    draft = {**mesh.draft, "version": 2, "previous": keeper.current.digest.hex()}
    with pytest.raises(MeshError) as error:
        keeper.accept(mesh.sign(draft, signers=(1,)))
    assert error.value.reason == "POLICY_SIGNATURES_INSUFFICIENT"
    assert [path.name for path in (mesh.folder / "k" / "policy").iterdir()] == ["1.json"]


def test_a_chain_on_disk_that_was_tampered_with_is_refused(mesh: JoinedMesh) -> None:
    keeper = mesh.keeper("k")
    second = mesh.successor(keeper.current)
    keeper.accept(second)
    path = mesh.folder / "k" / "policy" / "2.json"
    stranger = JoinedMesh(mesh.folder, mesh.machine)  # Other operators.
    for tampered, reason in (
        (
            second.replace(b'"minimum_evaluation_number":0', b'"minimum_evaluation_number":1'),
            "POLICY_SIGNATURES_INSUFFICIENT",
        ),
        (stranger.successor(keeper.current), "POLICY_SIGNATURES_INSUFFICIENT"),
        (second[:-1], "POLICY_MALFORMED"),
        (mesh.seed, "POLICY_VERSION_NOT_NEXT"),
    ):
        assert tampered != second
        path.write_bytes(tampered)
        with pytest.raises(MeshError) as error:
            mesh.keeper("k")
        assert error.value.reason == reason


def test_the_seed_of_another_mesh_is_refused(mesh: JoinedMesh, tmp_path: Path) -> None:
    seed = tmp_path / "seed.json"
    seed.write_bytes(mesh.sign({**mesh.draft, "trust_domain": "other.test"}))
    with pytest.raises(MeshError) as error:
        load_keeper(tmp_path, seed, mesh.anchors("router"))
    assert error.value.reason == "POLICY_OF_ANOTHER_MESH"


def test_a_seed_of_operators_that_were_not_measured_is_refused(mesh: JoinedMesh, tmp_path: Path) -> None:
    seed = tmp_path / "seed.json"
    seed.write_bytes(mesh.seed)
    strangers = tuple(Ed25519PrivateKey.generate().public_key().public_bytes_raw() for _ in range(3))
    with pytest.raises(MeshError) as error:
        load_keeper(tmp_path, seed, Anchors("router", TRUST_DOMAIN, strangers, 2))
    assert error.value.reason == "POLICY_SIGNATURES_INSUFFICIENT"


def test_a_missing_seed_says_which_file(mesh: JoinedMesh, tmp_path: Path) -> None:
    with pytest.raises(PolicyUnreadable, match=r"seed\.json"):
        load_keeper(tmp_path, tmp_path / "seed.json", mesh.anchors("router"))


def test_drafts_that_a_killed_service_left_are_removed_at_its_next_start(mesh: JoinedMesh, tmp_path: Path) -> None:
    seed = tmp_path / "seed.json"
    seed.write_bytes(mesh.seed)
    revocations = tmp_path / "policy" / "revocations"
    revocations.mkdir(parents=True)
    others = revocations / ".mine.json.0123456789abcdef"
    drafts = [
        tmp_path / "policy" / ".2.json.0123456789abcdef",
        revocations / f".{'ab' * 32}.json.0123456789abcdef",
    ]
    for path in (*drafts, others):
        path.write_bytes(b"half")
    load_keeper(tmp_path, seed, mesh.anchors("router"))
    assert not any(path.exists() for path in drafts)
    assert others.exists()
