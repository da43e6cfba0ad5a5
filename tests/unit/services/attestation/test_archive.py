"""The archive: durable, bounded, and never a byte that is not what its name says."""

from __future__ import annotations

import hashlib
import resource
from pathlib import Path

import pytest

from libs.identity.exchange import EvidenceUnknown
from libs.tee.appraisal import OwnNonce
from libs.tee.archived import AppraisalRecord, Bundle, Question, Refused
from services.attestation.archive import AppraisalUnknown, Archive, ArchiveUnavailable

LARGE = 1 << 30
POLICY = b'{"policy":1}'


def bundle(number: int, evidence: bytes = b'{"evidence":1}', policy: bytes = POLICY) -> Bundle:
    """Records of other times are other records."""
    record = AppraisalRecord(
        hashlib.sha256(evidence).digest(),
        hashlib.sha256(policy).digest(),
        Question("node", 1_790_000_000 + number, None, OwnNonce(bytes(32))),
        Refused("DEBUG_TD", "a debug TD", 4),
    )
    return Bundle.of(record, evidence, policy)


async def opened(folder: Path, limit_bytes: int = LARGE) -> Archive:
    archive = Archive(folder, limit_bytes)
    await archive.open()
    return archive


def files(folder: Path) -> dict[str, list[str]]:
    return {kind.name: sorted(file.name for file in kind.iterdir()) for kind in folder.iterdir()}


async def test_what_is_kept_comes_back_also_after_a_restart(tmp_path: Path) -> None:
    kept = bundle(1)
    digest = await (await opened(tmp_path)).keep(kept)
    assert digest == kept.record.digest
    for archive in (await opened(tmp_path), await opened(tmp_path)):
        assert await archive.bundle(digest) == kept.encode()
        assert await archive.evidence(kept.record.evidence) == kept.evidence


async def test_what_is_kept_twice_is_there_once(tmp_path: Path) -> None:
    archive = await opened(tmp_path)
    assert await archive.keep(bundle(1)) == await archive.keep(bundle(1))
    await archive.keep(bundle(2))
    stored = files(tmp_path)
    assert [len(stored[kind]) for kind in ("evidence", "policies", "records")] == [1, 1, 2]


@pytest.mark.parametrize("digest", [b"", b"x", bytes(32), b"/" * 32])
async def test_what_was_never_kept_is_unknown(tmp_path: Path, digest: bytes) -> None:
    archive = await opened(tmp_path)
    await archive.keep(bundle(1))
    with pytest.raises(EvidenceUnknown):
        await archive.evidence(digest)
    with pytest.raises(AppraisalUnknown):
        await archive.bundle(digest)


@pytest.mark.parametrize("restart", [False, True])
async def test_the_oldest_records_go_first_and_take_what_nobody_else_cites(tmp_path: Path, restart: bool) -> None:
    bundles = [bundle(number, b'{"evidence":%d}' % (number // 2)) for number in range(6)]
    record_bytes = len(bundles[0].record.encode())
    # Room for four records, their two documents and the policy.
    limit = 4 * record_bytes + 2 * len(bundles[0].evidence) + len(POLICY)
    archive = await opened(tmp_path, LARGE if restart else limit)
    digests = [await archive.keep(each) for each in bundles]
    if restart:
        archive = await opened(tmp_path, limit)
    for digest in digests[:2]:
        with pytest.raises(AppraisalUnknown):
            await archive.bundle(digest)
    with pytest.raises(EvidenceUnknown):
        await archive.evidence(bundles[0].record.evidence)
    assert [await archive.bundle(digest) for digest in digests[2:]] == [each.encode() for each in bundles[2:]]
    stored = files(tmp_path)
    assert [len(stored[kind]) for kind in ("evidence", "policies", "records")] == [2, 1, 4]


async def test_the_newest_record_stays_however_little_room_there_is(tmp_path: Path) -> None:
    archive = await opened(tmp_path, 1)
    await archive.keep(bundle(1))
    digest = await archive.keep(bundle(2))
    assert await archive.bundle(digest) == bundle(2).encode()
    assert len(files(tmp_path)["records"]) == 1


async def test_a_torn_write_leaves_nothing_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    digest = await (await opened(tmp_path)).keep(bundle(1))
    name = files(tmp_path)["evidence"][0]
    torn = tmp_path / "evidence" / f".{name}.{'0' * 16}"
    torn.write_bytes(b"half")
    foreign = tmp_path / "records" / "README"
    foreign.write_bytes(b"mine")
    (tmp_path / "evidence" / "folder").mkdir()
    link = tmp_path / "evidence" / ("ab" * 32)
    link.symlink_to(foreign)
    archive = await opened(tmp_path)
    assert not torn.exists()
    assert foreign.read_bytes() == b"mine"
    assert link.is_symlink()
    with pytest.raises(EvidenceUnknown):
        await archive.evidence(b"\xab" * 32)
    assert await archive.bundle(digest) == bundle(1).encode()


async def test_documents_without_a_record_and_records_without_documents_go(tmp_path: Path) -> None:
    archive = await opened(tmp_path)
    await archive.keep(bundle(1))
    lost = await archive.keep(bundle(2, b'{"evidence":2}'))
    (tmp_path / "evidence" / bundle(2, b'{"evidence":2}').record.evidence.hex()).unlink()
    orphan = tmp_path / "policies" / ("cd" * 32)
    orphan.write_bytes(b"nobody cites this")
    archive = await opened(tmp_path)
    assert not orphan.exists()
    with pytest.raises(AppraisalUnknown):
        await archive.bundle(lost)
    assert len(files(tmp_path)["records"]) == 1


@pytest.mark.parametrize("damage", [b"", b'{"evidence":2}', b'{"evidence":1}'[:-1]])
async def test_a_damaged_document_is_not_served_until_it_is_written_again(tmp_path: Path, damage: bytes) -> None:
    archive = await opened(tmp_path)
    digest = await archive.keep(bundle(1))
    (tmp_path / "evidence" / bundle(1).record.evidence.hex()).write_bytes(damage)
    archive = await opened(tmp_path)
    with pytest.raises(EvidenceUnknown):
        await archive.evidence(bundle(1).record.evidence)
    with pytest.raises(EvidenceUnknown):
        await archive.bundle(digest)
    await archive.keep(bundle(2))
    assert await archive.evidence(bundle(1).record.evidence) == bundle(1).evidence
    assert await archive.bundle(digest) == bundle(1).encode()


async def test_a_damaged_record_is_not_served(tmp_path: Path) -> None:
    archive = await opened(tmp_path)
    digest = await archive.keep(bundle(1))
    (tmp_path / "records" / files(tmp_path)["records"][0]).write_bytes(bundle(2).record.encode())
    with pytest.raises(AppraisalUnknown):
        await archive.bundle(digest)


@pytest.mark.parametrize("damage", [b"", None])
async def test_a_record_that_was_found_damaged_is_gone_with_what_nobody_else_cites(
    tmp_path: Path, damage: bytes | None
) -> None:
    archive = await opened(tmp_path)
    other = bundle(2, b'{"evidence":2}')
    digest, other_digest = await archive.keep(bundle(1)), await archive.keep(other)
    file = next(file for file in (tmp_path / "records").iterdir() if digest.hex() in file.name)
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage)
    with pytest.raises(AppraisalUnknown):
        await archive.bundle(digest)
    assert not await archive.holds(digest)
    assert [len(names) for names in files(tmp_path).values()] == [1, 1, 1]
    assert archive._files._total == sum(len(each) for each in (other.record.encode(), other.evidence, other.policy))
    assert await archive.bundle(other_digest) == other.encode()
    assert await archive.keep(bundle(1)) == digest
    assert await archive.bundle(digest) == bundle(1).encode()


async def test_what_cannot_be_opened_just_now_is_not_taken_for_damaged(tmp_path: Path) -> None:
    """Callers can use up the files that a process may open; nothing must be lost by that."""
    archive = await opened(tmp_path)
    digest = await archive.keep(bundle(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        for reading in (archive.bundle(digest), archive.evidence(bundle(1).record.evidence)):
            with pytest.raises(ArchiveUnavailable):
                await reading
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert await archive.holds(digest)
    assert await archive.bundle(digest) == bundle(1).encode()


async def test_a_record_whose_name_lies_about_what_it_cites_is_not_served(tmp_path: Path) -> None:
    archive = await opened(tmp_path)
    digest = await archive.keep(bundle(1))
    await archive.keep(bundle(2, b'{"evidence":2}'))
    name = next(name for name in files(tmp_path)["records"] if digest.hex() in name)
    other = bundle(2, b'{"evidence":2}').record.evidence.hex()
    lie = name.replace(bundle(1).record.evidence.hex(), other)
    (tmp_path / "records" / name).rename(tmp_path / "records" / lie)
    with pytest.raises(AppraisalUnknown):
        await (await opened(tmp_path)).bundle(digest)


async def test_a_disk_that_fails_refuses_and_leaves_nothing_behind(tmp_path: Path) -> None:
    archive = await opened(tmp_path)
    (tmp_path / "records").rmdir()
    with pytest.raises(ArchiveUnavailable):
        await archive.keep(bundle(1))
    assert files(tmp_path) == {"evidence": [], "policies": []}
    (tmp_path / "records").mkdir()
    assert await archive.bundle(await archive.keep(bundle(1))) == bundle(1).encode()


async def test_a_folder_that_is_none_refuses_to_open(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(b"")
    with pytest.raises(ArchiveUnavailable):
        await opened(tmp_path / "archive")


def test_a_records_name_fits_every_file_system() -> None:
    longest = len(f".{'0' * 12}.{'.'.join(['0' * 64] * 3)}.{'0' * 16}")
    assert longest <= 255
