"""What a reading says of logs that a ledger, a router or a disk has spoiled. Each frame's own hashes are right."""

from __future__ import annotations

import base64
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.audit.log.findings import Status
from libs.audit.log.notes import Key, read_checkpoint
from libs.audit.log.promises import Held
from libs.audit.log.reading import Depth
from libs.events.keyset import PreviousIssuer
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.leaf import Kind
from services.ledger.storage import watermark
from services.ledger.storage.records_log import CHECKPOINTS, OWED, QUARANTINE, RecordsLog
from tests.fakes.written_log import TAG_KEY, VAULT, Author, WrittenLog, rewritten, tag_of

from .conftest import read, said


@pytest.fixture
def begun(log: WrittenLog) -> WrittenLog:
    """A signed log in which ledger and router have introduced themselves."""
    log.append([log.ledger.introduce()], [log.router.introduce()]).sign()
    return log


def held(note: bytes, file: str = "old.checkpoint") -> Held:
    return Held(file, None, read_checkpoint(note))


def test_number_that_is_withheld_is_a_gap_after_a_minute_of_the_logs_own_time(begun: WrittenLog) -> None:
    begun.append([begun.router.receipt()])
    begun.router.receipt("taken, and never published")
    begun.append([begun.router.receipt()])
    begun.seconds = 60
    begun.append([begun.ledger.start()])
    waiting = read(begun.files())
    assert waiting.findings.worst is Status.SOUND
    assert any("number 3 missing for 60.0 s" in remark for remark in waiting.findings.remarks)
    begun.seconds = 61
    begun.append([begun.ledger.start()])
    late = read(begun.files())
    assert late.findings.worst is Status.GAP
    assert f"issuer {begun.router.id.hex()[:16]}: number 3 missing for 61.0 s, and no entry says why" in said(late)


def test_number_that_comes_late_is_no_gap(begun: WrittenLog) -> None:
    late, begun_with = begun.router.receipt(), begun.router.receipt()
    begun.append([begun_with])
    begun.seconds = 3600
    begun.append([late], [begun.ledger.start()])
    assert read(begun.files()).findings.worst is Status.SOUND


def test_number_that_a_quarantine_entry_names_is_no_gap(begun: WrittenLog) -> None:
    router = begun.router
    for _ in range(3):
        router.receipt("refused")
    begun.append([router.receipt()], [begun.ledger.quarantine(router.id, 3)])
    begun.seconds = 100
    begun.append([begun.ledger.quarantine(router.id, 2)])
    still = read(begun.files())
    assert "number 4 missing" in said(still)
    begun.append([begun.ledger.quarantine(router.id, 4)])
    assert read(begun.files()).findings.worst is Status.SOUND


@pytest.mark.parametrize("reason", ["KIND_NOT_ALLOWED", "BODY_NOT_OPENED", "ENTRY_MALFORMED", "SEQUENCE_TOO_FAR"])
def test_a_number_cannot_be_withheld_by_having_it_refused(begun: WrittenLog, reason: str) -> None:
    begun.router.receipt("withheld")
    begun.append([begun.router.receipt(), begun.ledger.quarantine(begun.router.id, 3, reason)])
    found = read(begun.files())
    assert found.findings.worst is Status.GAP
    assert f"to what no honest issuer writes: {reason}" in said(found)


def test_last_numbers_before_a_restart_are_missed_by_the_next_start(begun: WrittenLog) -> None:
    begun.append([begun.router.receipt()])
    successor = Author("router", previous=PreviousIssuer(begun.router.id, 4))
    begun.append([successor.introduce()])
    begun.seconds = 61
    begun.append([successor.receipt()])
    assert "numbers 3 to 4 missing for 61.0 s" in said(read(begun.files()))


def test_another_service_cannot_close_a_sequence(begun: WrittenLog) -> None:
    other = Author("router", instance="2", previous=PreviousIssuer(begun.router.id, 4))
    begun.append([other.introduce()])
    begun.seconds = 61
    begun.append([other.receipt()])
    assert read(begun.files()).findings.worst is Status.SOUND


def test_number_on_two_leaves_is_found(begun: WrittenLog) -> None:
    first = begun.router.receipt("one")
    begun.router.take_back(first)
    second = begun.router.receipt("two")
    begun.append([first], [begun.router.receipt()]).force(second)
    reading = read(begun.files())
    assert reading.findings.worst is Status.GAP
    assert "number 2 stands for a second entry" in said(reading)


def test_conflict_that_the_ledger_recorded_is_told(begun: WrittenLog) -> None:
    begun.append([begun.ledger.conflict(begun.router.id, 1)])
    reading = read(begun.files())
    assert reading.findings.worst is Status.GAP
    assert "gave number 1 to two entries" in said(reading)


def test_entry_that_names_another_before_it_is_found_in_either_order(begun: WrittenLog) -> None:
    ledger = begun.ledger
    third = ledger.start()
    ledger.take_back(third)
    ledger.start()
    fourth = ledger.start()
    assert fourth.issuer_seq == 3
    in_order = [third, fourth]
    begun.append(in_order)
    assert "the entry names another one before it than the log holds" in said(read(begun.files()))


def test_entry_that_names_another_before_it_is_found_while_an_earlier_number_is_missing(begun: WrittenLog) -> None:
    ledger = begun.ledger
    missing, early = ledger.start(), ledger.start()
    ledger.take_back(early)
    ledger.start()
    late = ledger.start()
    begun.append([early], [late], [missing])
    assert "the entry names another one before it than the log holds" in said(read(begun.files()))


def test_entry_that_is_not_the_one_a_later_one_named_is_found(begun: WrittenLog) -> None:
    ledger = begun.ledger
    second = ledger.start()
    ledger.take_back(second)
    ledger.start()
    third = ledger.start()
    begun.append([third], [second])
    reading = read(begun.files())
    assert "entry 2 is not the one that the next one names" in said(reading)


def test_issuer_without_a_keyset_is_not_proven(log: WrittenLog) -> None:
    log.append([log.ledger.introduce()], [log.router.receipt(), log.router.receipt()])
    reading = read(log.files())
    assert reading.findings.worst is Status.UNPROVEN
    assert said(reading).count("writes without a keyset") == 1


@pytest.mark.parametrize("kind", [Kind.POLICY, Kind.QUARANTINE, Kind.ERASURE])
def test_kind_that_the_role_may_not_write_is_not_proven(begun: WrittenLog, kind: Kind) -> None:
    names = {"issuer": "00" * 32, "issuer_seq": 1}
    begun.append([begun.router.entry(kind, names)])
    reading = read(begun.files())
    assert reading.findings.worst is Status.UNPROVEN
    assert "role router writes no entries of such a kind" in said(reading)


def test_keyset_of_another_key_is_not_proven(log: WrittenLog) -> None:
    log.router.keyset = replace(log.ledger.keyset, boot=log.router.boot)
    log.append([log.ledger.introduce()], [log.router.introduce()])
    assert "the issuer is named by another key or start" in said(read(log.files()))


def test_keyset_whose_evidence_claims_another_key_is_not_proven(log: WrittenLog) -> None:
    other = Author("router")
    log.router.keyset = replace(log.router.keyset, evidence=other.keyset.evidence, certificate=other.keyset.certificate)
    log.append([log.ledger.introduce()], [log.router.introduce()])
    assert "the evidence claims another log key" in said(read(log.files()))


def test_keyset_whose_certificate_names_other_evidence_is_not_proven(log: WrittenLog) -> None:
    log.router.keyset = replace(log.router.keyset, certificate=Author("router").keyset.certificate)
    log.append([log.ledger.introduce()], [log.router.introduce()])
    assert "the certificate names other evidence" in said(read(log.files()))


def test_tree_head_by_an_unknown_key_is_not_proven(log: WrittenLog) -> None:
    stranger = Ed25519PrivateKey.generate()
    log.append([log.ledger.introduce()], [log.router.introduce()]).sign(stranger)
    reading = read(log.files())
    assert (reading.findings.worst, reading.newest) == (Status.UNPROVEN, None)
    assert "no known key of mesh.local/ledger/1 signed the tree of 2 leaves" in said(reading)
    known = Key("mesh.local/ledger/1", stranger.public_key().public_bytes_raw())
    assert read(log.files(), keys=(known,)).findings.worst is Status.SOUND


def test_a_keyset_may_be_renewed_by_the_same_service_about_the_same_log_key(begun: WrittenLog) -> None:
    router = begun.router
    later = router.attested(receipt_key="07" * 32)
    begun.append([router.receipt(), router.entry(Kind.KEYSET, later.body())], [router.receipt()])
    assert read(begun.files()).findings.worst is Status.SOUND


def test_a_renewed_keyset_of_another_service_is_not_proven(begun: WrittenLog) -> None:
    begun.append([begun.router.entry(Kind.KEYSET, begun.router.attested(instance="2").body())])
    reading = read(begun.files())
    assert reading.findings.worst is Status.UNPROVEN
    assert "it renews the keyset of another service" in said(reading)


def test_a_renewed_keyset_about_another_log_key_is_not_proven(begun: WrittenLog) -> None:
    other = replace(Author("router").keyset, spki=begun.router.spki, boot=begun.router.boot)
    begun.append([begun.router.entry(Kind.KEYSET, other.body())])
    assert "the evidence claims another log key" in said(read(begun.files()))


def test_a_renewed_keyset_that_closes_a_sequence_is_damage(begun: WrittenLog) -> None:
    closing = replace(begun.router.attested(), previous=PreviousIssuer(begun.ledger.id, 1))
    begun.append([begun.router.entry(Kind.KEYSET, closing.body())])
    reading = read(begun.files())
    assert reading.findings.worst is Status.DAMAGED
    assert "a keyset that is renewed closes no sequence" in said(reading)


def test_tree_head_of_a_restarted_ledger_is_proven_by_its_own_keyset(begun: WrittenLog) -> None:
    begun.sign()
    restarted = Author("ledger", previous=PreviousIssuer(begun.ledger.id, 1))
    begun.sign(restarted.checkpoint_key)
    begun.append([restarted.introduce()])
    reading = read(begun.files())
    assert (reading.findings.worst, len(reading.keys)) == (Status.SOUND, 2)


def test_two_signed_trees_of_one_size_are_two_histories(begun: WrittenLog) -> None:
    begun.sign()
    begun.sign_tree(Checkpoint("mesh.local/ledger/1", 2, b"\x07" * 32))
    reading = read(begun.files())
    assert reading.findings.worst is Status.DIVERGED
    ((one, other),) = reading.contradictions
    assert other is not None
    assert (one.size, other.size, one.root) == (2, 2, b"\x07" * 32)


def test_smaller_tree_signed_after_a_larger_one_is_damage(begun: WrittenLog) -> None:
    begun.append([begun.router.receipt()])
    begun.sign()
    begun.sign_tree(Checkpoint("mesh.local/ledger/1", 1, b"\x07" * 32))
    assert "a tree of 1 leaves was signed after one of 3" in said(read(begun.files()))


def test_log_below_a_signed_size_is_rolled_back(begun: WrittenLog) -> None:
    older = begun.files()
    begun.append([begun.router.receipt()])
    signed = begun.sign()
    reading = read(older, outside=[held(signed)])
    assert reading.findings.worst is Status.ROLLED_BACK
    assert "2 leaves are left, but old.checkpoint promises 3" in said(reading)


def test_history_rewritten_with_the_logs_own_keys_is_found_by_an_old_head(begun: WrittenLog, tmp_path: Path) -> None:
    receipt = begun.router.receipt("what was said")
    begun.append([receipt, begun.router.receipt("more")])
    old = begun.sign()
    other = rewritten(begun, tmp_path / "rewritten", ["what is said now", "more", "even more"])
    other.sign()
    alone = read(other.files())
    assert alone.findings.worst is Status.SOUND
    reading = read(other.files(), outside=[held(old)])
    assert reading.findings.worst is Status.DIVERGED
    ((contradicted, _),) = reading.contradictions
    assert (contradicted.size, contradicted.note) == (4, old)


def test_unsigned_head_of_others_proves_no_second_history(begun: WrittenLog) -> None:
    begun.sign()
    forged = begun.sign_tree(Checkpoint("mesh.local/ledger/1", 1, b"\x07" * 32), Ed25519PrivateKey.generate())
    reading = read(begun.files(), outside=[held(forged)])
    assert not reading.findings.has(Status.DIVERGED)
    assert reading.findings.has(Status.UNPROVEN)


def test_head_of_another_log_is_not_this_ones(begun: WrittenLog) -> None:
    text = begun.sign().replace(b"ledger/1\n2", b"ledger/2\n2")
    reading = read(begun.files(), outside=[held(text)])
    assert reading.findings.worst is Status.UNPROVEN
    assert "it is of mesh.local/ledger/2, not of mesh.local/ledger/1" in said(reading)


def test_root_within_a_frame_is_known_too(begun: WrittenLog) -> None:
    begun.append([begun.router.receipt(), begun.router.receipt()])
    roots = read(begun.files(), sizes=frozenset({3})).roots
    assert roots is not None
    begun_again = begun.files()
    leaves = begun_again["seg/00000000000000000000.seg"]
    hashes = [sha256(b"\0" + leaves[at : at + 96]).digest() for at in _leaf_places(leaves)]
    two = sha256(b"\x01" + hashes[0] + hashes[1]).digest()
    assert roots[3] == sha256(b"\x01" + two + hashes[2]).digest()


def test_how_many_a_router_did_not_let_in_is_its_to_say(begun: WrittenLog) -> None:
    said = {"from": 1, "until": 3601, "counts": {"API_KEY_INVALID": 3}}
    begun.append([begun.router.entry(Kind.REFUSALS, said)])
    assert read(begun.files()).findings.worst is Status.SOUND
    begun.append([begun.ledger.entry(Kind.REFUSALS, said)])
    assert read(begun.files()).findings.worst is Status.UNPROVEN


def test_tenant_finds_all_its_entries(begun: WrittenLog) -> None:
    begun.append([begun.router.receipt() for _ in range(2)], [begun.router.receipt()])
    reading = read(begun.files(), tag_key=TAG_KEY)
    assert (reading.findings.worst, reading.tenant_entries) == (Status.SOUND, 3)


def test_tenants_number_on_a_leaf_of_another_vault_is_found(begun: WrittenLog) -> None:
    other = replace(VAULT, vault_id=b"\x0a" * 16, tenant="cd" * 16)
    second = tag_of(VAULT.vault_id, 2)
    begun.tag = lambda vault_id, number: second if vault_id == other.vault_id else tag_of(vault_id, number)
    begun.append([begun.router.receipt()], [begun.router.entry(Kind.RECEIPT, {}, other)])
    assert read(begun.files()).findings.worst is Status.SOUND
    reading = read(begun.files(), tag_key=TAG_KEY)
    assert reading.findings.worst is Status.GAP
    assert "number 2 of the tenant's lies in another vault" in said(reading)


def test_tenants_number_that_is_on_no_leaf_is_found(begun: WrittenLog) -> None:
    begun.tag = lambda vault_id, number: tag_of(vault_id, number + 1 if any(vault_id) and number >= 2 else number)
    begun.append([begun.router.receipt() for _ in range(2)], [begun.router.receipt()])
    assert read(begun.files()).findings.worst is Status.SOUND
    reading = read(begun.files(), tag_key=TAG_KEY)
    assert reading.findings.worst is Status.GAP
    assert "numbers 2 to 2 of the vault are on no leaf before number 3" in said(reading)


def test_tenants_entry_under_another_tag_is_found(begun: WrittenLog) -> None:
    begun.tag = lambda vault_id, number: bytes(16) if any(vault_id) and number == 2 else tag_of(vault_id, number)
    begun.append([begun.router.receipt() for _ in range(3)])
    assert "an entry of the vault is not its number 2" in said(read(begun.files(), tag_key=TAG_KEY))


def test_other_tenants_key_recognises_nothing(begun: WrittenLog) -> None:
    begun.append([begun.router.receipt()])
    assert read(begun.files(), tag_key=b"\x01" * 32).tenant_entries == 0


def test_public_entry_out_of_the_public_vaults_order_is_damage(begun: WrittenLog) -> None:
    begun.tag = lambda vault_id, number: tag_of(vault_id, number + 1)
    begun.append([begun.ledger.start()])
    assert "its tag is not that of the public vault's next number" in said(read(begun.files()))


def test_public_entry_that_its_leaf_does_not_commit_to_is_damage(begun: WrittenLog) -> None:
    entry = begun.ledger.start()
    begun.append([replace(entry, body=entry.body[:-1] + b" ")])
    reading = read(begun.files())
    assert reading.findings.worst is Status.DAMAGED
    assert "entry 2: the entry in clear is not the one that its leaf commits to" in said(reading)


def test_tenants_kind_in_the_public_vault_is_damage(begun: WrittenLog) -> None:
    receipt = begun.router.receipt()
    begun.append([replace(receipt, vault_id=bytes(16), vault_epoch=0)], [begun.ledger.start()])
    assert "a row's kind, vault and month do not belong together" in said(read(begun.files()))


def test_log_without_a_signed_head_is_borne_out_by_nothing(begun: WrittenLog) -> None:
    assert read(begun.files()).findings.worst is Status.SOUND
    stripped = {name: data for name, data in begun.files().items() if name not in ("checkpoint", "checkpoints.log")}
    reading = read(stripped)
    assert reading.findings.worst is Status.UNPROVEN
    assert "no signed head holds: nothing bears the log out" in said(reading)


def test_tree_can_be_read_without_tenants_bodies(begun: WrittenLog) -> None:
    entry = begun.router.receipt()
    begun.append([entry], [begun.ledger.start()])
    files = begun.files()
    name = "seg/00000000000000000000.seg"
    at = files[name].index(entry.body)
    files[name] = files[name][:at] + bytes([files[name][at] ^ 1]) + files[name][at + 1 :]
    assert read(files, depth=Depth.TREE).findings.worst is Status.SOUND
    assert read(files, depth=Depth.TREE, sampled=frozenset({3})).findings.worst is Status.SOUND
    assert read(files, depth=Depth.TREE, sampled=frozenset({2})).findings.worst is Status.DAMAGED
    assert read(files).findings.worst is Status.DAMAGED


def test_segments_that_are_missing_or_foreign_are_damage(sound: dict[str, bytes]) -> None:
    first, second, third = sorted(name for name in sound if name.startswith("seg/"))
    for name in (first, second):
        reading = read({each: data for each, data in sound.items() if each != name})
        assert reading.findings.wrong[0].file == name.removeprefix("seg/")
        assert reading.findings.worst is Status.DAMAGED
    last = read({name: data for name, data in sound.items() if name != third})
    assert last.findings.worst is Status.ROLLED_BACK
    assert read({**sound, "seg/notes.txt": b""}).findings.worst is Status.DAMAGED
    assert read({**sound, "seg/00000000000000000009.tmp": b"TMSEG"}).findings.worst is Status.SOUND


def test_log_without_a_description_is_damage(sound: dict[str, bytes]) -> None:
    reading = read({name: data for name, data in sound.items() if name != "log.json"})
    assert (reading.findings.worst, reading.findings.wrong[0].file) == (Status.DAMAGED, "log.json")


def test_watermark_of_another_history_is_noticed(begun: WrittenLog, sound: dict[str, bytes]) -> None:
    begun.append([begun.ledger.start()])
    files = begun.files()
    other = WrittenLog(begun.folder.parent / "other").create()
    other.append([other.ledger.introduce()], [other.ledger.start()], [other.ledger.start()])
    reading = read({**files, "wm": other.files()["wm"]})
    assert reading.findings.worst is Status.ROLLED_BACK
    assert "the first 3 leaves are not those that were durable once" in said(reading)


def test_watermark_with_another_chain_head_is_noticed(begun: WrittenLog) -> None:
    files = begun.files()
    mark = watermark.Mark(8, 2, 1, b"\x07" * 32, read(files).root)
    reading = read({**files, "wm": mark.pack()})
    assert (reading.findings.worst, "not those that were durable once" in said(reading)) == (Status.ROLLED_BACK, True)


def _leaf_places(segment: bytes) -> list[int]:
    places, at = [], 4096
    while segment[at : at + 4] == b"TMF1":
        count = int.from_bytes(segment[at + 16 : at + 20], "big")
        places += [at + 160 + 152 * row for row in range(count)]
        at += int.from_bytes(segment[at + 4 : at + 8], "big")
    return places


def test_files_that_were_exchanged_under_a_signed_head_prove_no_second_history(
    begun: WrittenLog, tmp_path: Path
) -> None:
    """Whoever has the disk can write any tree; only the log's key can sign one."""
    begun.append([begun.router.receipt("what was said")])
    begun.sign()
    other = rewritten(begun, tmp_path / "rewritten", ["what was not"])
    exchanged = {**other.files(), "checkpoints.log": begun.files()["checkpoints.log"]}
    reading = read({**exchanged, "checkpoint": begun.files()["checkpoint"]})
    assert (reading.findings.worst, reading.contradictions) == (Status.ROLLED_BACK, ())
    assert "the log is not what it signed" in said(reading)


@pytest.mark.parametrize(("name", "magic"), [("owed.log", OWED), ("quarantine.log", QUARANTINE)])
def test_what_is_owed_or_was_refused_is_held_to_be_whole(begun: WrittenLog, name: str, magic: bytes) -> None:
    path = begun.folder / name
    log = RecordsLog(path, magic, 0)
    log.append([b"synced", b"together"])
    between = log.end
    log.append([b"synced", b"later"])
    log.close()
    assert read(begun.files()).findings.worst is Status.SOUND
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        findings = read(begun.files()).findings
        assert findings.worst is (Status.DAMAGED if at < between else Status.TORN), at
        assert {each.file for each in findings.wrong} == {name}


def test_evidence_that_was_set_aside_is_remarked_as_the_entry_says_it(begun: WrittenLog) -> None:
    said_of_it = {"file": "owed.log", "size": 9, "sha256": "ab" * 32, "damaged_at": 0, "records_kept": 0}
    begun.append([begun.ledger.entry(Kind.GAP, said_of_it)]).sign()
    findings = read(begun.files()).findings
    assert findings.worst is Status.SOUND
    assert any("was damaged and set aside" in each and "abababababababab" in each for each in findings.remarks)
    begun.append([begun.ledger.entry(Kind.GAP, {**said_of_it, "sha256": "\x1b[2J"})]).sign()
    assert read(begun.files()).findings.worst is Status.DAMAGED


def test_head_that_witnesses_signed_later_is_the_logs_own(begun: WrittenLog) -> None:
    first = begun.sign()
    line = "\N{EM DASH} witness.example " + base64.b64encode(b"\x01" * 76).decode() + "\n"
    begun.append([begun.ledger.start()])
    begun.sign()
    log = RecordsLog(begun.folder / "checkpoints.log", CHECKPOINTS, (begun.folder / "checkpoints.log").stat().st_size)
    log.append([first + line.encode()])
    log.close()
    files = begun.files()
    witnessed = {**files, "checkpoint.witnessed": first + line.encode()}
    assert read(witnessed).findings.worst is Status.SOUND
    strange = {**witnessed, "checkpoint.witnessed": files["checkpoint"].replace(b"\n3\n", b"\n2\n")}
    assert "checkpoints.log does not hold it" in said(read(strange))
