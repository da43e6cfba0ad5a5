"""What the log says of vaults: closed from the order on, held until released, and the same however often it is read."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.events.erasure import (
    KEY_RETIRED,
    Authority,
    ErasureDone,
    ErasureEntry,
    ErasureMalformed,
    ErasureOrdered,
    HoldChanged,
)
from libs.events.records import Entry
from libs.policy.orders import ERASE_VAULT, HOLD_VAULT, RELEASE_VAULT, Order, SignedOrder
from libs.policy.vault_orders import VaultPart
from libs.transparency.chain import entry_id
from libs.transparency.leaf import Kind
from services.ledger.vaults.erasures import Erasures
from tests.fakes.joined_mesh import JoinedMesh, KmsCore

from .writers import VAULT, Gatekeeper, LogWriter, gatekeeper

ISSUER = b"\x11" * 32
WHOLE, MONTH = VaultPart(VAULT.vault_id, None), VaultPart(VAULT.vault_id, VAULT.epoch)
OTHER = b"\x77" * 16


def order(action: str, not_after: int = 2**33, signers: int = 1) -> SignedOrder:
    signed = SignedOrder(Order("mesh.test", action, VAULT.vault_id.hex(), not_after))
    for number in range(signers):
        signed = signed.signed_by(Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32))
    return signed


def ordered(part: VaultPart = WHOLE) -> ErasureOrdered:
    return ErasureOrdered(part, 1, Authority(1, order=order(ERASE_VAULT)))


def done(number: int, part: VaultPart = WHOLE) -> ErasureDone:
    return ErasureDone(part, entry_id(ISSUER, number), 1, 9, bytes(32), 2, KEY_RETIRED)


def held(not_after: int = 2**33, signers: int = 1) -> HoldChanged:
    return HoldChanged(VAULT.vault_id, True, 1, order(HOLD_VAULT, not_after, signers))


def released(not_after: int = 2**33) -> HoldChanged:
    return HoldChanged(VAULT.vault_id, False, 1, order(RELEASE_VAULT, not_after))


def read(*entries: ErasureEntry) -> Erasures:
    """The state after these entries, numbered from 1."""
    erasures = Erasures()
    for number, said in enumerate(entries, 1):
        erasures.take(Entry(Kind.ERASURE, ISSUER, number, bytes(32), None, said.body()))
    return erasures


def test_an_order_closes_the_vault_or_one_month_of_it_and_no_other() -> None:
    erasures = read(ordered(MONTH))
    assert erasures.closing(VAULT.vault_id, VAULT.epoch) is not None
    assert erasures.closing(VAULT.vault_id, VAULT.epoch + 1) is None
    assert erasures.of(WHOLE) is None
    this, next_one = (VAULT.epoch, VAULT.vault_id), (VAULT.epoch + 1, VAULT.vault_id)
    assert erasures.closes_any({next_one, this})
    assert not erasures.closes_any({next_one, (VAULT.epoch, OTHER)})
    erasures = read(ordered(MONTH), ordered(WHOLE))
    assert erasures.closes_any({next_one, (VAULT.epoch, OTHER)})
    assert not erasures.closes_any({(VAULT.epoch, OTHER)})
    assert erasures.closing(VAULT.vault_id, VAULT.epoch + 1) is not None
    assert erasures.closing(OTHER, VAULT.epoch) is None
    assert [each.part for each in erasures.outstanding()] == [MONTH, WHOLE]


def test_an_erasure_is_done_when_the_entry_about_that_very_order_says_so() -> None:
    assert read(ordered(), done(7)).outstanding()
    assert read(ordered(), done(1, MONTH)).outstanding()
    erasures = read(ordered(), done(1))
    assert not erasures.outstanding()
    (erasure,) = erasures.all()
    assert (erasure.part, erasure.ordered, erasure.done) == (WHOLE, entry_id(ISSUER, 1), entry_id(ISSUER, 2))


def test_of_two_orders_the_first_counts() -> None:
    erasures = read(ordered(), ordered(), done(1), done(2))
    assert [each.ordered for each in erasures.all()] == [entry_id(ISSUER, 1)]
    assert not erasures.outstanding()


def test_an_order_behind_a_hold_closes_nothing_and_a_hold_behind_an_order_holds_nothing() -> None:
    for part in (WHOLE, MONTH):
        assert read(held(), ordered(part)).closing(VAULT.vault_id, VAULT.epoch) is None
        assert not read(held(), ordered(part)).closes_any({(VAULT.epoch, VAULT.vault_id)})
    erasures = read(ordered(), held())
    assert not erasures.is_held(VAULT.vault_id)
    assert read(held(), released(), ordered()).closing(VAULT.vault_id, VAULT.epoch) is not None


def test_a_spent_order_changes_no_hold_again_whoever_else_signs_it() -> None:
    assert read(held(1), released(2), held(1)).is_held(VAULT.vault_id) is False
    assert read(held(1), released(2), held(1, signers=2)).is_held(VAULT.vault_id) is False
    erasures = read(held(1), released(2), held(3), released(2))
    assert erasures.is_held(VAULT.vault_id)
    assert erasures.is_spent(order(HOLD_VAULT, 1).order)
    assert not erasures.is_spent(order(HOLD_VAULT, 4).order)


def test_what_is_no_entry_about_a_vault_is_refused() -> None:
    with pytest.raises(ErasureMalformed):
        Erasures().take(Entry(Kind.ERASURE, ISSUER, 1, bytes(32), None, {"step": "ordered"}))


@pytest.fixture
def gate(mesh: JoinedMesh, kms: KmsCore) -> Gatekeeper:
    return gatekeeper(mesh, kms)


def introduced(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper, role: str) -> LogWriter:
    writer = LogWriter(mesh, kms, role)
    assert not gate.judge(writer.batch(writer.introduce())).refusals
    return writer


def test_from_the_order_on_records_of_the_vault_are_refused_and_those_before_it_stay_known(
    mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper
) -> None:
    router, ledger = (introduced(mesh, kms, gate, role) for role in ("router", "ledger"))
    before, after = router.seal(Kind.RECEIPT, vault=VAULT), router.seal(Kind.RECEIPT, vault=VAULT)
    assert not gate.judge(router.batch(before)).refusals
    assert not gate.judge(ledger.batch(ledger.seal(Kind.ERASURE, ordered().body()))).refusals
    assert gate.reasons(router.batch(before, after)) == ["VAULT_ERASED"]


def test_an_order_in_one_batch_closes_for_what_follows_it_there(
    mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper
) -> None:
    ledger = introduced(mesh, kms, gate, "ledger")
    sealed = [ledger.seal(Kind.ERASURE, said.body()) for said in (held(1), ordered(), released(2), ordered(MONTH))]
    assert not gate.judge(ledger.batch(*sealed)).refusals
    router = introduced(mesh, kms, gate, "router")
    assert gate.reasons(router.batch(router.seal(Kind.RECEIPT, vault=VAULT))) == ["VAULT_ERASED"]


@pytest.mark.parametrize("role", ["router", "kms", "registry"])
def test_nobody_but_the_ledger_closes_a_vault(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper, role: str) -> None:
    writer, router = introduced(mesh, kms, gate, role), introduced(mesh, kms, gate, "router")
    assert gate.reasons(writer.batch(writer.seal(Kind.ERASURE, ordered().body()))) == ["KIND_NOT_ALLOWED"]
    assert not gate.judge(router.batch(router.seal(Kind.RECEIPT, vault=VAULT))).refusals


def test_an_entry_that_is_none_is_refused_and_closes_nothing(mesh: JoinedMesh, kms: KmsCore, gate: Gatekeeper) -> None:
    router, ledger = (introduced(mesh, kms, gate, role) for role in ("router", "ledger"))
    body = {**ordered().body(), "vault": "00" * 16}
    assert gate.reasons(ledger.batch(ledger.seal(Kind.ERASURE, body))) == ["ENTRY_MALFORMED"]
    assert not gate.judge(router.batch(router.seal(Kind.RECEIPT, vault=VAULT))).refusals
