"""The publisher against a real broker and a ledger that answers, or does not, or lies."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.errors import MeshError
from libs.events.answers import KeysetRefused
from libs.events.batches import parse_batch, verify_batch
from libs.events.consume import ensure_stream
from libs.events.keyset import parse_keyset
from libs.events.kinds import Kind
from libs.events.outbox import Outbox
from libs.events.outbox_items import Acknowledged, Item
from libs.events.publish import Committed, EventSettings, LedgerUnavailable, Publisher, open_publisher
from libs.events.records import MAX_BODY_BYTES, Entry, Record, open_record, verify_entry
from libs.events.subjects import stream_name
from libs.events.vault import VaultKey
from libs.transparency.acknowledgement import verify_acknowledgement
from libs.transparency.chain import entry_id, log_id
from tests.fakes.ledger_answers import FakeLease, FakePeer
from tests.unit.libs.events.conftest import (
    FAST,
    OTHER_TENANT,
    OTHER_VAULT,
    TENANT,
    VAULT,
    VAULTS,
    Mesh,
    member_with,
    vault_of,
)

PATIENCE_SECONDS = 60.0


class LedgerAway(MeshError):
    reason = "LEDGER_AWAY_FOR_A_TEST"


class VaultErased(MeshError):
    reason = "VAULT_ERASED"


def entries_of(message: bytes) -> list[Entry]:
    batch = parse_batch(message)
    vaults = {vault.vault_id: vault for vault in VAULTS.values()}

    def opened(number: int, record: Record) -> Entry:
        vault = None if record.header.is_public else vaults[record.header.vault_id]
        entry = open_record(record, batch.issuer, number, vault)
        return verify_entry(entry, record.header, batch.issuer, number, None if vault is None else vault.tenant)

    return [opened(number, record) for number, record in batch.numbered()]


def logged(mesh: Mesh) -> list[Entry]:
    """What the ledger holds, each entry once."""
    found: dict[tuple[bytes, int], Entry] = {}
    for message in mesh.ledger.messages:
        for entry in entries_of(message):
            found.setdefault((entry.issuer, entry.issuer_seq), entry)
    return list(found.values())


async def until_logged(mesh: Mesh, kind: Kind) -> Entry:
    while True:
        changed = mesh.ledger.changed
        for entry in logged(mesh):
            if entry.kind is kind:
                return entry
        await changed.wait()


async def until_amended(mesh: Mesh, number: int) -> list[Entry]:
    while True:
        changed = mesh.ledger.changed
        amendments = [entry for entry in logged(mesh) if entry.kind is Kind.AMENDMENT]
        if len(amendments) == number:
            return amendments
        await changed.wait()


async def test_a_commit_returns_with_the_ledgers_verified_promise(mesh: Mesh) -> None:
    async with mesh.reading(), mesh.publisher() as publisher:
        committed = await publisher.commit(Kind.RECEIPT, {"n": 1}, vault=VAULT, timeout=10)
        ack_key = mesh.ledger.key.public_key().public_bytes_raw()
        statement = verify_acknowledgement(committed.acknowledgement, ack_key, log_id(mesh.ledger.origin))
        publisher.released(committed)
    assert (statement.issuer, statement.issuer_seq) == (publisher.issuer, committed.issuer_seq)
    assert committed.entry_id == entry_id(publisher.issuer, committed.issuer_seq)
    assert jcs.loads_object(committed.entry)["body"] == {"n": 1}
    for message in mesh.ledger.messages:
        verify_batch(parse_batch(message), mesh.log_key.public_key())


async def test_an_issuer_begins_with_its_keyset_and_names_each_commitment_before(mesh: Mesh) -> None:
    async with mesh.reading(), mesh.publisher() as publisher:
        for number in range(3):
            await publisher.commit(Kind.POLICY, {"n": number}, vault=None, timeout=10)
    entries = logged(mesh)
    keyset = parse_keyset(entries[0].body)
    assert keyset.issuer == publisher.issuer
    assert (keyset.certificate, keyset.previous) == (b"certificate", None)
    assert [entry.issuer_seq for entry in entries] == [1, 2, 3, 4]
    records = [record for message in mesh.ledger.messages for record in parse_batch(message).records]
    assert [entry.previous for entry in entries] == [bytes(32), *(record.header.commitment for record in records[:3])]


async def test_many_commits_share_batches_and_lose_nothing(mesh: Mesh) -> None:
    async with mesh.reading(), mesh.publisher() as publisher:
        commits = [publisher.commit(Kind.USAGE, {"n": number}, vault=VAULT, timeout=20) for number in range(300)]
        done = await asyncio.gather(*commits)
    assert sorted(one.issuer_seq for one in done) == list(range(2, 302))
    assert len(mesh.ledger.messages) < 100


async def test_entries_become_durable_behind_a_broker_that_does_not_answer(mesh: Mesh) -> None:
    slow = replace(FAST, publish_seconds=60.0)
    async with asyncio.timeout(30), mesh.publisher(timing=slow) as publisher:
        async with mesh.reading():
            await publisher.commit(Kind.POLICY, {"n": 0}, vault=None, timeout=10)
        with mesh.broker.paused():
            durable = [await publisher.enqueue(Kind.POLICY, {"n": number}, vault=None) for number in (1, 2, 3, 4)]
    assert [one.issuer_seq for one in durable] == [3, 4, 5, 6]


async def test_the_brokers_ack_alone_releases_nothing(mesh: Mesh) -> None:
    mesh.ledger.silent = True
    async with mesh.reading(), mesh.publisher() as publisher:
        commit = asyncio.create_task(publisher.commit(Kind.RECEIPT, {}, vault=VAULT, timeout=30))
        await until_logged(mesh, Kind.RECEIPT)
        assert not commit.done()
        assert not publisher.is_admitted
        mesh.ledger.silent = False
        mesh.ledger.wake()
        await commit
        assert publisher.is_admitted


async def test_without_an_answer_commit_says_so_and_an_amendment_follows(mesh: Mesh) -> None:
    mesh.ledger.silent = True
    async with mesh.reading(), mesh.publisher() as publisher:
        with pytest.raises(LedgerUnavailable) as refusal:
            await publisher.commit(Kind.RECEIPT, {}, vault=VAULT, timeout=0.3, amendment={"emitted": "503"})
        amendment = await until_logged(mesh, Kind.AMENDMENT)
    assert refusal.value.reason == "LEDGER_UNAVAILABLE"
    named = refusal.value.entry_id.hex()
    assert amendment.body == {"entry_id": named, "effect": "not_released", "emitted": "503"}


async def until_stored(mesh: Mesh, messages: int) -> None:
    stream = await mesh.link.jetstream(10)
    while (await stream.stream_info(stream_name(1))).state.last_seq < messages:
        pass


async def test_what_followed_a_keyset_that_the_broker_lost_follows_it_again(mesh: Mesh) -> None:
    """The ledger refused it as an unknown issuer's; and the broker, which still has it, drops it under its old id."""
    mesh.ledger.silent = True
    async with asyncio.timeout(30), mesh.publisher() as publisher:
        await until_stored(mesh, 1)
        await publisher.enqueue(Kind.POLICY, {"n": 1}, vault=None)
        await until_stored(mesh, 2)
        await (await mesh.link.jetstream(10)).purge_stream(stream_name(1), keep=1)
        seen = mesh.link.connections
        await mesh.broker.kill()
        await mesh.broker.start()
        await mesh.link.connected_after(seen)
        async with mesh.reading():
            await mesh.ledger.until(3)
    assert [parse_batch(message).first_seq for message in mesh.ledger.messages] == [2, 1, 2]


async def test_what_the_broker_still_has_is_not_stored_again_after_another_connection(mesh: Mesh) -> None:
    mesh.ledger.silent = True
    async with asyncio.timeout(30), mesh.publisher() as publisher:
        await until_stored(mesh, 1)
        await publisher.enqueue(Kind.POLICY, {"n": 1}, vault=None)
        await until_stored(mesh, 2)
        await mesh.broker.kill()
        while publisher.is_connected:  # noqa: ASYNC110 - nobody is told of it
            await asyncio.sleep(0)
        await publisher.enqueue(Kind.POLICY, {"n": 2}, vault=None)
        seen = mesh.link.connections
        await mesh.broker.start()
        await mesh.link.connected_after(seen)
        async with mesh.reading():
            await mesh.ledger.until(3)
    assert [parse_batch(message).first_seq for message in mesh.ledger.messages] == [1, 2, 3]


async def test_a_cancelled_commit_is_amended_too(mesh: Mesh) -> None:
    mesh.ledger.silent = True
    async with mesh.reading(), mesh.publisher() as publisher:
        commit = asyncio.create_task(publisher.commit(Kind.RECEIPT, {}, vault=VAULT, timeout=30))
        await until_logged(mesh, Kind.RECEIPT)
        commit.cancel()
        assert (await until_logged(mesh, Kind.AMENDMENT)).body["effect"] == "not_released"


async def test_an_acknowledgement_counts_when_it_is_durable_whatever_is_done_meanwhile(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, write = threading.Event(), Outbox._write

    def slow(outbox: Outbox, items: Sequence[Item]) -> int:
        if any(isinstance(item, Acknowledged) and item.issuer_seq > 1 for item in items):
            assert disk.wait(PATIENCE_SECONDS)
        return write(outbox, items)

    monkeypatch.setattr(Outbox, "_write", slow)
    begun, done = asyncio.Event(), asyncio.Event()

    async def meanwhile(committed: Committed) -> None:
        begun.set()
        await done.wait()

    async with asyncio.timeout(PATIENCE_SECONDS), mesh.reading(), mesh.publisher() as publisher:
        for first, then in ((disk, done), (done, disk)):
            for each in (begun, disk, done):
                each.clear()
            commit = asyncio.create_task(
                publisher.commit(Kind.RECEIPT, {}, vault=VAULT, timeout=30, meanwhile=meanwhile)
            )
            await begun.wait()
            first.set()
            assert await asyncio.wait((commit,), timeout=0.2) == (set(), {commit})
            then.set()
            publisher.released(await commit)


async def test_the_ledgers_time_is_not_for_what_is_done_meanwhile(mesh: Mesh) -> None:
    async def longer(committed: Committed) -> None:
        await asyncio.sleep(1.5)

    async with mesh.reading(), mesh.publisher() as publisher:
        publisher.released(await publisher.commit(Kind.RECEIPT, {}, vault=VAULT, timeout=1.0, meanwhile=longer))
        await publisher.commit(Kind.POLICY, {}, vault=None, timeout=10)
    assert [entry.kind for entry in logged(mesh)] == [Kind.KEYSET, Kind.RECEIPT, Kind.POLICY]


async def test_a_commit_that_is_cancelled_meanwhile_is_amended_too(mesh: Mesh) -> None:
    begun = asyncio.Event()

    async def meanwhile(committed: Committed) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with mesh.reading(), mesh.publisher() as publisher:
        commit = asyncio.create_task(
            publisher.commit(
                Kind.RECEIPT, {}, vault=VAULT, timeout=30, abandoned={"emitted": "some"}, meanwhile=meanwhile
            )
        )
        await asyncio.wait_for(begun.wait(), PATIENCE_SECONDS)
        commit.cancel()
        amendment = await until_logged(mesh, Kind.AMENDMENT)
    assert (amendment.body["effect"], amendment.body["emitted"]) == ("not_released", "some")


async def test_a_response_that_may_have_gone_out_in_part_is_amended_as_unknown(mesh: Mesh) -> None:
    async with mesh.reading(), mesh.publisher() as publisher:
        committed = await publisher.commit(Kind.RECEIPT, {}, vault=VAULT, timeout=10)
        publisher.uncertain(committed, vault=VAULT)
        amendment = await until_logged(mesh, Kind.AMENDMENT)
    assert amendment.body == {"entry_id": committed.entry_id.hex(), "effect": "release_unknown"}


async def test_a_start_that_the_ledger_does_not_admit_ends_itself(mesh: Mesh) -> None:
    """What the ledger refused once it refuses to this issuer for ever: only a new start can be judged anew."""
    mesh.ledger.reject = "KEYSET_REFUSED"
    with pytest.raises(ExceptionGroup) as ended:
        async with mesh.reading(), mesh.publisher():
            await asyncio.Event().wait()
    assert ended.value.subgroup(KeysetRefused) is not None


async def test_a_later_keyset_of_the_same_start_is_logged_after_what_it_wrote(mesh: Mesh) -> None:
    async with mesh.reading(), mesh.publisher() as publisher:
        await publisher.commit(Kind.RECEIPT, {}, vault=VAULT, timeout=10)
        committed = await publisher.introduce_again(b"certificate", b'{"claims":{}}', {"report": 1}, timeout=10)
        first, renewed = (parse_keyset(entry.body) for entry in logged(mesh) if entry.kind is Kind.KEYSET)
    assert committed.issuer_seq == 3
    assert renewed.issuer == first.issuer == publisher.issuer
    assert (renewed.certificate, renewed.evidence) == (b"certificate", b'{"claims":{}}')
    assert renewed.report == {"report": 1}
    assert renewed.previous is None


async def test_a_later_keyset_that_the_ledger_refuses_ends_nothing(mesh: Mesh) -> None:
    async with mesh.reading(), mesh.publisher() as publisher:
        await publisher.commit(Kind.RECEIPT, {}, vault=VAULT, timeout=10)
        mesh.ledger.reject = "KEYSET_NOT_RENEWED"
        with pytest.raises(MeshError) as refusal:
            await publisher.introduce_again(b"certificate", b"{}", {}, timeout=10)
        assert refusal.value.reason == "ENTRY_REJECTED"
        mesh.ledger.reject = None
        await publisher.commit(Kind.RECEIPT, {}, vault=VAULT, timeout=10)


async def fill(publisher: Publisher) -> NoReturn:
    while True:
        await publisher.enqueue(Kind.KEY_DECISION, {"padding": "x" * 100_000}, vault=None)


async def test_whoever_fills_the_outbox_cannot_keep_essential_entries_out_of_the_log(mesh: Mesh) -> None:
    mesh.ledger.silent = True
    settings = EventSettings(
        mesh.broker.url, "127.0.0.1:9", mesh.folder / "outbox", outbox_max_bytes=4 * MAX_BODY_BYTES
    )
    member = member_with(mesh.ca, mesh.router_files, mesh.log_key)
    async with (
        mesh.reading(),
        open_publisher(
            member, settings, mesh.peer, log_key=mesh.log_key, timing=FAST, reserve_bytes=MAX_BODY_BYTES
        ) as publisher,
    ):
        with pytest.raises(MeshError) as refusal:
            await fill(publisher)
        assert refusal.value.reason == "OUTBOX_FULL"
        with pytest.raises(MeshError) as refusal:
            await publisher.commit(Kind.KEY_DECISION, {}, vault=None, timeout=10)
        assert refusal.value.reason == "OUTBOX_FULL"
        await publisher.enqueue(Kind.REVOCATION, {"n": 1}, vault=None, essential=True)
        change = asyncio.create_task(
            publisher.commit(Kind.KEY_DECISION, {"n": 2}, vault=None, timeout=30, essential=True)
        )
        assert (await until_logged(mesh, Kind.REVOCATION)).body == {"n": 1}
        mesh.ledger.silent = False
        mesh.ledger.wake()
        await change


async def refused_commit(mesh: Mesh) -> str:
    async with mesh.reading(), mesh.publisher() as publisher:
        try:
            await publisher.commit(Kind.POLICY, {}, vault=None, timeout=1.0)
        except MeshError as refusal:
            return refusal.reason
    return "accepted"


async def test_an_acknowledgement_under_another_key_is_refused(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    mesh.ledger.signing_key = Ed25519PrivateKey.generate()
    assert await refused_commit(mesh) == "LEDGER_UNAVAILABLE"
    assert "ACKNOWLEDGEMENT_INVALID" in capsys.readouterr().out


async def test_an_acknowledgement_of_another_record_is_refused(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    mesh.ledger.other_commitment = True
    assert await refused_commit(mesh) == "LEDGER_UNAVAILABLE"
    assert "ACKNOWLEDGEMENT_NOT_OURS" in capsys.readouterr().out


async def test_a_superseded_writer_is_refused(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    async with mesh.reading(), mesh.publisher() as publisher:
        await publisher.commit(Kind.POLICY, {}, vault=None, timeout=10)
        mesh.ledger.epoch = 4
        with pytest.raises(LedgerUnavailable):
            await publisher.commit(Kind.POLICY, {}, vault=None, timeout=1.0)
    assert "SIGNER_SUPERSEDED" in capsys.readouterr().out


@pytest.mark.parametrize(
    "claims", [{"origin": "mesh.test/ledger/1"}, {"origin": "mesh.test/ledger/2", "ack_key": "00"}]
)
async def test_a_ledger_whose_evidence_names_no_key_is_not_believed(
    mesh: Mesh, claims: Mapping[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    mesh.peer.lease = FakeLease(type(mesh.peer.lease.appraisal)(claims))
    assert await refused_commit(mesh) == "LEDGER_UNAVAILABLE"
    assert "ACK_KEY_NOT_ATTESTED" in capsys.readouterr().out


async def test_a_rejected_entry_says_so_and_is_not_sent_again(mesh: Mesh) -> None:
    mesh.ledger.reject = "QUARANTINED_BODY"
    assert await refused_commit(mesh) == "ENTRY_REJECTED"
    sent = len(mesh.ledger.messages)
    mesh.ledger.reject = None
    async with mesh.reading(), mesh.publisher() as publisher:
        await publisher.commit(Kind.POLICY, {}, vault=None, timeout=10)
    assert all(parse_batch(message).issuer == publisher.issuer for message in mesh.ledger.messages[2 * sent :])


async def test_a_killed_broker_is_waited_for_and_everything_is_sent_again(mesh: Mesh) -> None:
    async with mesh.publisher() as publisher:
        async with mesh.reading():
            await publisher.commit(Kind.POLICY, {"n": 0}, vault=None, timeout=10)
        await mesh.broker.kill()
        during = await publisher.enqueue(Kind.RECEIPT, {"n": 1}, vault=VAULT)
        commit = asyncio.create_task(publisher.commit(Kind.RECEIPT, {"n": 2}, vault=VAULT, timeout=30))
        seen = mesh.link.connections
        await mesh.broker.start()
        await mesh.link.connected_after(seen)
        async with mesh.reading():
            committed = await commit
            publisher.released(committed)
    assert {entry.issuer_seq for entry in logged(mesh)} >= {during.issuer_seq, committed.issuer_seq}


class AbsentPeer:
    """A ledger that is not there."""

    lease: Any = None

    async def channel(self, timeout: float) -> grpc.aio.Channel:
        raise LedgerUnavailable("nobody answers", b"")


async def test_it_opens_without_broker_and_ledger_and_what_is_enqueued_is_durable(mesh: Mesh) -> None:
    await mesh.broker.kill()
    async with mesh.publisher(peer=AbsentPeer()) as publisher:
        enqueued = await publisher.enqueue(Kind.POLICY, {"n": 1}, vault=None)
        with pytest.raises(LedgerUnavailable):
            await publisher.commit(Kind.POLICY, {"n": 2}, vault=None, timeout=0.2)
        issuer = publisher.issuer
        assert not publisher.is_connected
    seen = mesh.link.connections
    await mesh.broker.start()
    await mesh.link.connected_after(seen)
    async with mesh.reading(), mesh.publisher() as publisher:
        await publisher.commit(Kind.POLICY, {"n": 3}, vault=None, timeout=20)
        while enqueued.issuer_seq not in mesh.ledger.by_issuer.get(issuer, {}):
            await mesh.ledger.changed.wait()
    entries = logged(mesh)
    keyset = next(entry for entry in entries if entry.kind is Kind.KEYSET and entry.issuer == publisher.issuer)
    previous = parse_keyset(keyset.body).previous
    assert previous is not None
    assert (previous.issuer, previous.last_seq) == (issuer, 3)


async def test_after_a_restart_the_same_bytes_go_out_and_open_receipts_are_amended(mesh: Mesh) -> None:
    mesh.ledger.silent = True
    async with mesh.publisher() as publisher:
        waiting = asyncio.create_task(publisher.commit(Kind.RECEIPT, {"n": 1}, vault=VAULT, timeout=60))
        async with mesh.reading():
            await until_logged(mesh, Kind.RECEIPT)
    with pytest.raises(MeshError) as refusal:
        await waiting
    assert refusal.value.reason == "PUBLISHER_CLOSED"
    before = list(dict.fromkeys(mesh.ledger.messages))
    mesh.ledger.messages.clear()
    mesh.ledger.by_issuer.clear()
    mesh.ledger.silent = False
    await _forget_everything(mesh)
    async with mesh.reading(), mesh.publisher() as successor:
        amendment = await until_logged(mesh, Kind.AMENDMENT)
        while not set(before) <= set(mesh.ledger.messages):
            await mesh.ledger.changed.wait()
    receipt = next(entry for entry in logged(mesh) if entry.kind is Kind.RECEIPT)
    assert amendment.issuer == successor.issuer
    assert amendment.body == {
        "entry_id": entry_id(receipt.issuer, receipt.issuer_seq).hex(),
        "effect": "not_released",
    }


async def _forget_everything(mesh: Mesh) -> None:
    """The broker loses its stream, as it may."""
    stream = await mesh.link.jetstream(10)
    await stream.delete_stream("LEDGER_1")
    await ensure_stream(mesh.link, 1, max_bytes=64 * 1024 * 1024, replicas=1, timeout=10.0)


async def test_an_acknowledged_receipt_that_was_not_released_is_amended_as_unknown(mesh: Mesh) -> None:
    async with mesh.reading():
        async with mesh.publisher() as publisher:
            committed = await publisher.commit(Kind.RECEIPT, {}, vault=VAULT, timeout=10)
        async with mesh.publisher():
            amendment = await until_logged(mesh, Kind.AMENDMENT)
    assert amendment.body == {"entry_id": committed.entry_id.hex(), "effect": "release_unknown"}


@pytest.mark.parametrize("silent", [TENANT, OTHER_TENANT])
async def test_a_vault_that_never_opens_keeps_no_other_tenants_receipt_open(mesh: Mesh, silent: str) -> None:
    async def open_vault(tenant: str) -> VaultKey:
        if tenant == silent:
            await asyncio.Event().wait()
        return await vault_of(tenant)

    async with asyncio.timeout(PATIENCE_SECONDS), mesh.reading():
        async with mesh.publisher() as publisher:
            left = {
                vault.tenant: await publisher.commit(Kind.RECEIPT, {}, vault=vault, timeout=10)
                for vault in (VAULT, OTHER_VAULT)
            }
        async with mesh.publisher(open_vault=open_vault):
            amendment = await until_logged(mesh, Kind.AMENDMENT)
    (other,) = {TENANT, OTHER_TENANT} - {silent}
    assert amendment.body["entry_id"] == left[other].entry_id.hex()


async def test_a_vault_that_opens_later_is_tried_again_and_opened_once_for_all_its_receipts(mesh: Mesh) -> None:
    tries = 0

    async def open_vault(tenant: str) -> VaultKey:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise LedgerAway("not yet")
        return await vault_of(tenant)

    async with asyncio.timeout(PATIENCE_SECONDS), mesh.reading():
        async with mesh.publisher() as publisher:
            left = [await publisher.commit(Kind.RECEIPT, {}, vault=VAULT, timeout=10) for _ in range(3)]
        async with mesh.publisher(open_vault=open_vault):
            amendments = await until_amended(mesh, 3)
    assert {amendment.body["entry_id"] for amendment in amendments} == {one.entry_id.hex() for one in left}
    assert tries == 2


async def test_a_receipt_whose_vault_is_erased_is_left_and_not_tried_again(mesh: Mesh) -> None:
    asked: list[str] = []

    async def open_vault(tenant: str) -> VaultKey:
        asked.append(tenant)
        if tenant == TENANT:
            raise VaultErased("gone")
        return await vault_of(tenant)

    async with asyncio.timeout(PATIENCE_SECONDS), mesh.reading():
        async with mesh.publisher() as publisher:
            for vault in (VAULT, OTHER_VAULT):
                await publisher.commit(Kind.RECEIPT, {}, vault=vault, timeout=10)
        async with mesh.publisher(open_vault=open_vault):
            await until_amended(mesh, 1)
        async with mesh.publisher(open_vault=open_vault) as publisher:
            await publisher.commit(Kind.POLICY, {}, vault=None, timeout=10)
    assert sorted(asked) == [OTHER_TENANT, TENANT]


async def test_a_released_receipt_is_not_amended(mesh: Mesh) -> None:
    async with mesh.reading():
        async with mesh.publisher() as publisher:
            committed = await publisher.commit(Kind.RECEIPT, {}, vault=VAULT, timeout=10)
            publisher.released(committed)
        async with mesh.publisher() as publisher:
            await publisher.commit(Kind.POLICY, {}, vault=None, timeout=10)
    assert Kind.AMENDMENT not in {entry.kind for entry in logged(mesh)}


async def test_a_log_key_that_the_evidence_does_not_name_is_refused(mesh: Mesh, tmp_path: Path) -> None:
    member = member_with(mesh.ca, mesh.router_files, Ed25519PrivateKey.generate())
    settings = EventSettings(mesh.broker.url, "127.0.0.1:9", tmp_path / "outbox")
    with pytest.raises(MeshError) as refusal:
        async with open_publisher(member, settings, mesh.peer, log_key=Ed25519PrivateKey.generate()):
            pass
    assert refusal.value.reason == "LOG_KEY_NOT_ATTESTED"
    assert isinstance(mesh.peer, FakePeer)
