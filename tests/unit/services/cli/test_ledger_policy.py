"""`teemesh ledger verify --policy`: every writer's evidence is judged again, by the log's own policies."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from libs import jcs
from libs.events.erasure import Authority, ErasureDone, ErasureEntry, ErasureOrdered, HoldChanged, TagKeyGiven
from libs.events.keyset import Keyset
from libs.events.pruning import PruneOrdered
from libs.events.vault import vault_epoch
from libs.identity.certificate import Subject, pem_of
from libs.policy.orders import ERASE_VAULT, GIVE_TAG_KEY, HOLD_VAULT, PRUNE_LOG, RELEASE_VAULT, Order, SignedOrder
from libs.policy.revocation import RevocationKind
from libs.policy.signatures import parse_signed
from libs.policy.vault_orders import TagKeyGift, VaultPart
from libs.tee.challenge import Challenge
from libs.transparency.chain import entry_id
from libs.transparency.leaf import Kind
from services.cli.__main__ import main
from services.ledger.intake.sequencer import Candidate
from services.ledger.storage.description import LogDescription
from services.ledger.storage.segments import Geometry
from tests.fakes.joined_fixtures import kms, machine, mesh
from tests.fakes.joined_mesh import TRUST_DOMAIN, JoinedMesh, KmsCore
from tests.fakes.written_log import SECOND, Author, WrittenLog

ORIGIN = f"{TRUST_DOMAIN}/ledger/1"
WHOLE = VaultPart(b"\x0a" * 16, None)
__all__ = ["kms", "machine", "mesh"]


class AttestedAuthor(Author):
    """A service whose keyset a machine stands behind."""

    def __init__(self, mesh: JoinedMesh, kms: KmsCore, role: str, *, image: str = "measured") -> None:
        super().__init__(role, origin=ORIGIN)
        key, now = ec.generate_private_key(ec.SECP256R1()), int(time.time())
        challenge = Challenge.signed("kms/1", "issuance", now, kms.ca.key, kms.ca.certificate)
        claims = jcs.loads_object(self.keyset.evidence)["claims"]
        td = mesh.tds[role] if image == "measured" else mesh.boot(role, image)
        evidence = mesh.evidence(role, challenge, key, td=td, claims=claims)
        subject = Subject(TRUST_DOMAIN, role, "1", evidence.digest)
        certificate = kms.ca.issue_svid(subject, key.public_key(), now)
        self.keyset = Keyset(self.spki, self.boot, certificate, evidence.document, None, None)

    def says(self, kind: Kind, signed: bytes) -> Candidate:
        return self.entry(kind, jcs.loads_object(signed))


@pytest.fixture
def log(mesh: JoinedMesh, kms: KmsCore, tmp_path: Path) -> WrittenLog:
    """The ledger first, then the KMS with the policy that admits both, then a router."""
    log = WrittenLog(
        tmp_path / "log",
        ledger=AttestedAuthor(mesh, kms, "ledger"),
        router=AttestedAuthor(mesh, kms, "router"),
        geometry=Geometry(zeros_ahead=100),
        began_ns=int(time.time()) * SECOND,
    )
    return log.create(_description(mesh, mesh.seed)).append([log.ledger.introduce()])


@pytest.fixture
def begun(log: WrittenLog, mesh: JoinedMesh, kms: KmsCore) -> WrittenLog:
    keeper = AttestedAuthor(mesh, kms, "kms")
    log.append([keeper.introduce(), keeper.says(Kind.POLICY, mesh.seed)], [log.router.introduce()])
    log.sign()
    return log


Verify = Callable[..., tuple[int, str]]


@pytest.fixture
def verify(
    log: WrittenLog, mesh: JoinedMesh, kms: KmsCore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Verify:
    ca = tmp_path / "mesh-ca.pem"
    ca.write_bytes(pem_of(kms.ca.certificate))

    def run(policy: bytes | None = None) -> tuple[int, str]:
        path = tmp_path / "policy.json"
        path.write_bytes(policy or mesh.seed)
        code = main(["ledger", "verify", str(log.folder), "--policy", str(path), "--mesh-ca", str(ca)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_writers_that_policy_admits_are_told(begun: WrittenLog, verify: Verify) -> None:
    code, said = verify()
    assert code == 0, said
    assert "3 writers admitted again by policy; versions in the log: 1" in said


def test_writer_that_was_not_measured_is_not_admitted(
    begun: WrittenLog, verify: Verify, mesh: JoinedMesh, kms: KmsCore
) -> None:
    begun.append([AttestedAuthor(mesh, kms, "router", image="another").introduce()])
    code, said = verify()
    assert code == 5
    assert "entry 4: policy does not admit this writer: MEASUREMENT_NOT_ALLOWED" in said


def test_writer_that_another_ca_certified_is_not_admitted(begun: WrittenLog, verify: Verify, mesh: JoinedMesh) -> None:
    begun.append([AttestedAuthor(mesh, mesh.kms("other", root=b"\x09" * 32), "router").introduce()])
    code, said = verify()
    assert (code, "CERTIFICATE_NOT_ACCEPTED" in said) == (5, True)


def test_writer_that_a_later_policy_admits_was_let_in_too_early(
    log: WrittenLog, verify: Verify, mesh: JoinedMesh, kms: KmsCore
) -> None:
    keeper = AttestedAuthor(mesh, kms, "kms")
    without: dict[str, Any] = mesh.without("router")
    first = mesh.sign({**mesh.draft, "roles": without})
    second = mesh.successor(parse_signed(first).policy)
    log.folder.joinpath("log.json").write_bytes(_description(mesh, first).document())
    log.append([keeper.introduce(), keeper.says(Kind.POLICY, first)], [log.router.introduce()])
    log.append([keeper.says(Kind.POLICY, second)])
    code, said = verify(second)
    assert code == 5
    assert "entry 3: policy does not admit this writer: MEASUREMENT_NOT_ALLOWED" in said


def test_revoked_writer_is_not_admitted(begun: WrittenLog, verify: Verify, mesh: JoinedMesh, kms: KmsCore) -> None:
    keeper = AttestedAuthor(mesh, kms, "kms")
    spiffe_id = f"spiffe://{TRUST_DOMAIN}/router/1"
    forged = jcs.loads_object(mesh.revocation(RevocationKind.NODE, spiffe_id))
    forged["signature"] = "00" * 64
    begun.append([keeper.introduce(), keeper.entry(Kind.REVOCATION, forged)])
    begun.append([AttestedAuthor(mesh, kms, "router").introduce()])
    assert verify()[0] == 0
    begun.append([keeper.says(Kind.REVOCATION, mesh.revocation(RevocationKind.NODE, spiffe_id))])
    begun.append([AttestedAuthor(mesh, kms, "router").introduce()])
    code, said = verify()
    assert (code, "NODE_REVOKED" in said) == (5, True)


def test_policy_that_the_operators_did_not_sign_admits_nobody(
    log: WrittenLog, verify: Verify, mesh: JoinedMesh, kms: KmsCore
) -> None:
    keeper = AttestedAuthor(mesh, kms, "kms")
    log.append([keeper.introduce(), keeper.says(Kind.POLICY, mesh.sign(mesh.draft, signers=(0,)))])
    code, said = verify()
    assert code == 5
    assert "entry 2: no policy of this log's operators: POLICY_SIGNATURES_INSUFFICIENT" in said
    assert "entry 0: policy does not admit this writer: SEED_POLICY_ANOTHER" in said


def test_log_of_other_policies_than_the_auditors_is_not_proven(
    begun: WrittenLog, verify: Verify, mesh: JoinedMesh
) -> None:
    later = mesh.successor(parse_signed(mesh.seed).policy)
    code, said = verify(later)
    assert (code, "the log does not hold the version 2 given" in said) == (5, True)


def order(
    mesh: JoinedMesh, action: str = ERASE_VAULT, subject: str = WHOLE.subject, *, signers: int = 2, not_after: int = 1
) -> SignedOrder:
    signed = SignedOrder(Order(TRUST_DOMAIN, action, subject, not_after))
    for key in mesh.operators[:signers]:
        signed = signed.signed_by(key)
    return signed


def say(log: WrittenLog, said: ErasureEntry) -> bytes:
    """Have the ledger say it; return the entry's id."""
    logged = log.ledger.entry(Kind.ERASURE, jcs.loads_object(jcs.dumps(said.body())))
    log.append([logged])
    return entry_id(logged.issuer, logged.issuer_seq)


def done(ordered: bytes, part: VaultPart = WHOLE) -> ErasureDone:
    return ErasureDone(part, ordered, 0, 1, bytes(32), 1, "retired")


def test_what_was_ordered_of_vaults_is_borne_out_by_its_orders(
    begun: WrittenLog, verify: Verify, mesh: JoinedMesh
) -> None:
    held = VaultPart(b"\x0b" * 16, None)
    say(begun, HoldChanged(held.vault_id, True, 1, order(mesh, HOLD_VAULT, held.subject)))
    say(begun, ErasureOrdered(held, 0, Authority(1, order(mesh, subject=held.subject))))
    say(begun, HoldChanged(held.vault_id, False, 1, order(mesh, RELEASE_VAULT, held.subject)))
    for part in (WHOLE, held):
        say(begun, done(say(begun, ErasureOrdered(part, 0, Authority(1, order(mesh, subject=part.subject)))), part))
    code, said = verify()
    assert code == 0, said


@pytest.mark.parametrize(
    ("authority", "why"),
    [
        (lambda mesh: Authority(1, order(mesh, signers=1)), "ORDER_SIGNATURES_INSUFFICIENT"),
        (lambda mesh: Authority(1, order(mesh, HOLD_VAULT)), "ORDER_OF_ANOTHER_KIND"),
        (lambda mesh: Authority(1, order(mesh, subject="0b" * 16)), "its order is about another vault or month"),
        (lambda mesh: Authority(9, order(mesh)), "the log does not hold version 9"),
        (lambda mesh: Authority(1, retention_months=1), "version 1 has no such rule of age"),
    ],
)
def test_vault_that_nobody_with_a_say_ordered_to_be_erased_is_told(
    begun: WrittenLog, verify: Verify, mesh: JoinedMesh, authority: Callable[[JoinedMesh], Authority], why: str
) -> None:
    say(begun, ErasureOrdered(WHOLE, 0, authority(mesh)))
    code, said = verify()
    assert (code, why in said, "entry 4: by nobody's word that counts" in said) == (5, True, True)


def test_vault_that_was_erased_though_it_was_held_is_told(begun: WrittenLog, verify: Verify, mesh: JoinedMesh) -> None:
    hold, release, again = order(mesh, HOLD_VAULT), order(mesh, RELEASE_VAULT), order(mesh, HOLD_VAULT, not_after=2)
    for held, signed in ((True, hold), (False, release), (True, again), (False, release)):
        say(begun, HoldChanged(WHOLE.vault_id, held, 1, signed))  # The last has released a hold before.
    ordered = say(begun, ErasureOrdered(WHOLE, 0, Authority(1, order(mesh))))
    assert verify()[0] == 0
    say(begun, done(ordered))
    code, said = verify()
    assert (code, "an entry that did not close the vault" in said) == (5, True)


def test_hold_that_too_few_ordered_is_told(begun: WrittenLog, verify: Verify, mesh: JoinedMesh) -> None:
    say(begun, HoldChanged(WHOLE.vault_id, True, 1, order(mesh, HOLD_VAULT, signers=1)))
    say(begun, HoldChanged(WHOLE.vault_id, True, 1, order(mesh, HOLD_VAULT, "0b" * 16)))
    code, said = verify()
    assert (code, "ORDER_SIGNATURES_INSUFFICIENT" in said, "its order is about another vault" in said) == (
        5,
        True,
        True,
    )


def test_tag_key_that_is_said_to_be_given_by_nobodys_word_is_told(
    begun: WrittenLog, verify: Verify, mesh: JoinedMesh
) -> None:
    gift = TagKeyGift(WHOLE.vault_id, bytes(32)).subject
    say(begun, TagKeyGiven(WHOLE.vault_id, 1, order(mesh, GIVE_TAG_KEY, gift)))
    code, said = verify()
    assert code == 0, said
    say(begun, TagKeyGiven(WHOLE.vault_id, 1, order(mesh, GIVE_TAG_KEY, gift, signers=1)))
    say(begun, TagKeyGiven(b"\x0b" * 16, 1, order(mesh, GIVE_TAG_KEY, gift)))
    code, said = verify()
    assert (code, "ORDER_SIGNATURES_INSUFFICIENT" in said, "its order is about another vault" in said) == (
        5,
        True,
        True,
    )


def prune(log: WrittenLog, min_index: int, signed: SignedOrder, version: int = 1) -> None:
    """Have the ledger let entries below this one be pruned."""
    said = PruneOrdered(min_index, version, signed)
    log.append([log.ledger.entry(Kind.PRUNE, jcs.loads_object(jcs.dumps(said.body())))])


def test_pruning_that_was_ordered_is_borne_out(begun: WrittenLog, verify: Verify, mesh: JoinedMesh) -> None:
    prune(begun, 3, order(mesh, PRUNE_LOG, f"{ORIGIN},3"))
    code, said = verify()
    assert code == 0, said


@pytest.mark.parametrize(
    ("signed", "version", "why"),
    [
        (lambda mesh: order(mesh, PRUNE_LOG, f"{ORIGIN},3", signers=1), 1, "ORDER_SIGNATURES_INSUFFICIENT"),
        (lambda mesh: order(mesh, subject=f"{ORIGIN},3"), 1, "ORDER_OF_ANOTHER_KIND"),
        (lambda mesh: order(mesh, PRUNE_LOG, f"{ORIGIN},2"), 1, "PRUNE_ORDER_ANOTHER"),
        (lambda mesh: order(mesh, PRUNE_LOG, f"{TRUST_DOMAIN}/ledger/2,3"), 1, "PRUNE_ORDER_ANOTHER"),
        (lambda mesh: order(mesh, PRUNE_LOG, f"{ORIGIN},3"), 9, "POLICY_NOT_LOGGED"),
    ],
)
def test_pruning_that_nobody_with_a_say_ordered_is_told(
    begun: WrittenLog,
    verify: Verify,
    mesh: JoinedMesh,
    signed: Callable[[JoinedMesh], SignedOrder],
    version: int,
    why: str,
) -> None:
    prune(begun, 3, signed(mesh), version)
    code, said = verify()
    assert (code, why in said, "entry 4: by nobody's word that counts" in said) == (5, True, True)


def test_month_that_policy_keeps_is_not_erased_by_age(
    log: WrittenLog, verify: Verify, mesh: JoinedMesh, kms: KmsCore
) -> None:
    keeper, months = AttestedAuthor(mesh, kms, "kms"), 2
    seed = mesh.sign({**mesh.draft, "retention_months": months})
    log.folder.joinpath("log.json").write_bytes(_description(mesh, seed).document())
    log.append([keeper.introduce(), keeper.says(Kind.POLICY, seed)]).sign()
    now = vault_epoch(time.time())
    authority = Authority(1, retention_months=months)
    old = VaultPart(WHOLE.vault_id, now - months - 1)
    say(log, done(say(log, ErasureOrdered(old, 0, authority)), old))
    assert verify(seed)[0] == 0
    for part in (VaultPart(WHOLE.vault_id, now - months), WHOLE):
        say(log, ErasureOrdered(part, 0, authority))
    say(log, ErasureOrdered(old, 0, Authority(1, retention_months=1)))
    code, said = verify(seed)
    assert (code, said.count("the month is not older than the 2"), said.count("has no such rule of age")) == (5, 1, 2)


def test_policy_and_ca_go_together(begun: WrittenLog, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["ledger", "verify", str(begun.folder), "--policy", str(tmp_path / "policy.json")]) == 1
    assert main(["ledger", "verify", "https://127.0.0.1:1", "--mesh-ca", str(tmp_path / "ca.pem")]) == 1
    assert capsys.readouterr().err.count("give --policy and --mesh-ca together") == 2


def _description(mesh: JoinedMesh, seed: bytes) -> LogDescription:
    anchors, digest = mesh.anchors("ledger"), parse_signed(seed).policy.digest
    return LogDescription(ORIGIN, "LEDGER_1", digest, anchors.operator_keys, anchors.operator_threshold)
