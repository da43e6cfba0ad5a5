"""What a ledger says of its keys, seals and witnessed heads is true of the log that it says it in, or is found out."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.audit.log.findings import Status
from libs.audit.log.notes import Key
from libs.audit.log.reading import Part
from libs.transparency import checkpoint
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.leaf import Kind
from services.ledger.storage.segments import FOOTER_SIZE, Footer
from tests.fakes.entry_schema import require_documented
from tests.fakes.written_log import ORIGIN, Author, WrittenLog

from .conftest import read, said

FIRST = "seg/00000000000000000000.seg"


@pytest.fixture
def begun(log: WrittenLog) -> WrittenLog:
    """Five entries, of which the first four lie in a sealed segment; the first three and all are signed."""
    log.append([log.ledger.introduce()], [log.router.introduce()], [log.ledger.start()])
    log.sign()
    log.append([log.ledger.start()], [log.ledger.start()])
    log.sign()
    return log


def say(log: WrittenLog, kind: Kind, body: Mapping[str, Any], *, by_router: bool = False) -> None:
    require_documented(kind, body)
    log.append([(log.router if by_router else log.ledger).entry(kind, body)])


def keys_of(log: WrittenLog) -> dict[str, Any]:
    ledger = log.ledger
    return {
        "epoch": 1,
        "ack_key": ledger.ack_key.public_key().public_bytes_raw().hex(),
        "checkpoint_key": ledger.checkpoint_key.public_key().public_bytes_raw().hex(),
    }


def seal_of(log: WrittenLog) -> dict[str, Any]:
    data = log.files()[FIRST][-FOOTER_SIZE:]
    footer = Footer.parse(data)
    return {
        "number": 0,
        "first": 0,
        "count": 4,
        "chain": footer.chain.hex(),
        "root": footer.root.hex(),
        "footer_sha256": sha256(data).hexdigest(),
    }


def head_of(log: WrittenLog) -> dict[str, Any]:
    return {"checkpoint": (log.folder / "checkpoint").read_bytes().decode()}


def test_true_words_are_sound(begun: WrittenLog) -> None:
    say(begun, Kind.LOGKEY, keys_of(begun))
    say(begun, Kind.SEAL, seal_of(begun))
    say(begun, Kind.WITNESS, head_of(begun))
    reading = read(begun.files())
    assert reading.findings.worst is Status.SOUND
    assert not any("too far back" in remark for remark in reading.findings.remarks)


@pytest.mark.parametrize("member", ["ack_key", "checkpoint_key"])
def test_keys_that_the_ledgers_evidence_does_not_claim_are_unproven(begun: WrittenLog, member: str) -> None:
    say(begun, Kind.LOGKEY, {**keys_of(begun), member: "0a" * 32})
    reading = read(begun.files())
    assert reading.findings.worst is Status.UNPROVEN
    assert "it names other keys than its ledger's evidence claims" in said(reading)


def test_keys_that_another_role_names_are_unproven(begun: WrittenLog) -> None:
    say(begun, Kind.LOGKEY, keys_of(begun), by_router=True)
    assert read(begun.files()).findings.has(Status.UNPROVEN)


@pytest.mark.parametrize("member", ["chain", "root"])
def test_seal_over_another_history_is_damage(begun: WrittenLog, member: str) -> None:
    say(begun, Kind.SEAL, {**seal_of(begun), member: "0a" * 32})
    reading = read(begun.files())
    assert reading.findings.worst is Status.DAMAGED
    assert "ends in another tree or chain" in said(reading)


def test_footer_that_the_ledger_did_not_name_is_damage(begun: WrittenLog) -> None:
    """By its own key: whoever holds that could seal the segment once more, with another content."""
    say(begun, Kind.SEAL, {**seal_of(begun), "footer_sha256": "0a" * 32})
    reading = read(begun.files())
    assert reading.findings.worst is Status.DAMAGED
    assert "says in entry 5 that it sealed the segment with another footer" in said(reading)


def test_footer_of_another_members_file_is_no_contradiction(begun: WrittenLog) -> None:
    """It may have cut its file at the same leaf, and sealed it by its own key."""
    other = Author("ledger", instance="2")
    begun.append([other.introduce()])
    begun.append([other.entry(Kind.SEAL, {**seal_of(begun), "footer_sha256": "0a" * 32})])
    assert read(begun.files()).findings.worst is Status.SOUND


@pytest.mark.parametrize(("first", "count"), [(0, 99), (6, 1)])
def test_seal_of_what_comes_later_is_damage(begun: WrittenLog, first: int, count: int) -> None:
    say(begun, Kind.SEAL, {**seal_of(begun), "first": first, "count": count})
    assert "it says of entries that come later that they are sealed" in said(read(begun.files()))


def test_witnessed_head_of_another_history_is_two_histories(begun: WrittenLog) -> None:
    """The keys of the log stand under it, and under the one that the log has."""
    other = checkpoint.sign(Checkpoint(begun.ledger.origin, 5, b"\x0a" * 32), begun.ledger.checkpoint_key)
    say(begun, Kind.WITNESS, {"checkpoint": other.decode()})
    reading = read(begun.files())
    assert reading.findings.worst is Status.DIVERGED
    assert len(reading.contradictions) == 1


def test_witnessed_head_that_no_key_of_the_log_signed_is_unproven(begun: WrittenLog) -> None:
    tree = checkpoint.parse((begun.folder / "checkpoint").read_bytes())
    other = checkpoint.sign(tree, Ed25519PrivateKey.generate())
    say(begun, Kind.WITNESS, {"checkpoint": other.decode()})
    assert read(begun.files()).findings.worst is Status.UNPROVEN


def test_witnessed_head_counts_where_the_folder_has_lost_its_own(begun: WrittenLog) -> None:
    other = checkpoint.sign(Checkpoint(begun.ledger.origin, 5, b"\x0a" * 32), begun.ledger.checkpoint_key)
    say(begun, Kind.WITNESS, {"checkpoint": other.decode()})
    files = {name: data for name, data in begun.files().items() if not name.startswith("checkpoint")}
    assert read(files).findings.worst is Status.ROLLED_BACK


@pytest.mark.parametrize("size", [6, 7, 10**6])
def test_head_of_a_tree_that_was_not_there_is_damage(begun: WrittenLog, size: int) -> None:
    note = checkpoint.sign(Checkpoint(begun.ledger.origin, size, b"\x0a" * 32), begun.ledger.checkpoint_key)
    say(begun, Kind.WITNESS, {"checkpoint": note.decode()})
    assert "it says of a tree that comes later that it was witnessed" in said(read(begun.files()))


def test_head_at_which_no_commit_ends_is_damage(begun: WrittenLog) -> None:
    begun.append([begun.ledger.start(), begun.ledger.start()])
    note = checkpoint.sign(Checkpoint(begun.ledger.origin, 6, b"\x0a" * 32), begun.ledger.checkpoint_key)
    say(begun, Kind.WITNESS, {"checkpoint": note.decode()})
    assert "a tree of 6 leaves, and no commit ends there" in said(read(begun.files()))


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (Kind.LOGKEY, {}),
        (Kind.LOGKEY, {"epoch": 0, "ack_key": "00" * 32, "checkpoint_key": "00" * 32}),
        (Kind.SEAL, {"first": 0}),
        (Kind.WITNESS, {"checkpoint": 7}),
        (Kind.WITNESS, {"checkpoint": "no note"}),
        (Kind.WITNESS, {"checkpoint": "no note", "more": 1}),
        (Kind.PRUNE, {}),
        (Kind.PRUNE, {"min_index": 99}),
    ],
)
def test_body_of_another_form_is_damage(begun: WrittenLog, kind: Kind, body: Mapping[str, Any]) -> None:
    begun.append([begun.ledger.entry(kind, body)])
    assert read(begun.files()).findings.has(Status.DAMAGED)


def test_part_of_a_log_is_judged_by_what_it_has(begun: WrittenLog) -> None:
    """Whose keys are whose is unknown there, and what it says of the part before is told to be so."""
    seal, key = seal_of(begun), Key(ORIGIN, begun.ledger.vkey.public_key)
    say(begun, Kind.LOGKEY, keys_of(begun))
    say(begun, Kind.SEAL, {**seal, "count": 3})
    begun.sign()
    files = {name: data for name, data in begun.files().items() if name != FIRST}
    reading = read(files, part=Part(4, is_to_end=True), keys=(key,))
    assert reading.findings.worst is Status.SOUND
    assert "entry 6 is about a tree of 3 leaves, too far back to be held against it" in reading.findings.remarks
    assert read(begun.files()).findings.worst is Status.DAMAGED
