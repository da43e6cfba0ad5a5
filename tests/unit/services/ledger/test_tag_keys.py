"""A tenant's tag key: given to whom an order names and to nobody else, once the log says so; and it opens nothing.

What a ledger refuses is tried on one whose stream is a list; how people get and use a key, on a real process.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.errors import MeshError
from libs.events.erasure import TagKeyGiven
from libs.events.vault import PUBLIC_VAULT_ID, leaf_tag
from libs.policy.orders import ERASE_VAULT, GIVE_TAG_KEY, Order, SignedOrder
from libs.policy.vault_orders import TagKeyGift
from libs.rpc.errors import reason_of
from libs.transparency import leaf
from libs.transparency.leaf import Kind
from services.router.proof.vaults import Vaults
from tests.fakes.joined_mesh import TRUST_DOMAIN, Clock, JoinedMesh

from .desk import Desk
from .erasing_ledger import APRIL, OTHER, TENANT, ErasingLedger, started
from .live import LiveMesh, Router
from .vault_attack import Loot, files_below, released_by_the_kms, rows_in
from .writers import Keys

RECEIVER, ANOTHER = hashlib.sha256(b"a public key").digest(), hashlib.sha256(b"another").digest()
PATIENCE_SECONDS = 60.0


@pytest.fixture
async def ledger(empty_log: Path, mesh: JoinedMesh) -> AsyncIterator[ErasingLedger]:
    async with started(empty_log, mesh, Keys(), Clock(APRIL)) as ledger, ledger.running():
        yield ledger


@pytest.fixture
async def live(mesh: JoinedMesh) -> AsyncIterator[LiveMesh]:
    async with LiveMesh(mesh).running() as running:
        yield running


async def refusal(ledger: ErasingLedger, signed: bytes, receiver: bytes = RECEIVER) -> str:
    with pytest.raises(MeshError) as refused:
        await ledger.orders.give_tag_key(signed, receiver)
    return refused.value.reason


async def test_the_log_says_who_was_given_a_key_before_it_is_given(ledger: ErasingLedger) -> None:
    vault = await ledger.vaults.open(TENANT)
    signed = ledger.order(GIVE_TAG_KEY, TagKeyGift(vault.vault_id, RECEIVER).subject)
    given = await ledger.orders.give_tag_key(signed, RECEIVER)
    assert leaf_tag(given.key, 7) == ledger.vaults.tag(vault.vault_id, 7)
    assert ledger.store.reader.entry(given.index).leaf.kind is Kind.ERASURE
    assert await ledger.orders.give_tag_key(signed, RECEIVER) == given
    [said] = ledger.said()
    assert isinstance(said, TagKeyGiven)
    assert (said.vault_id, said.order.document) == (vault.vault_id, signed)


async def test_no_key_is_given_that_the_log_does_not_know_of(ledger: ErasingLedger) -> None:
    vault = await ledger.vaults.open(TENANT)
    ledger.own.away = True
    signed = ledger.order(GIVE_TAG_KEY, TagKeyGift(vault.vault_id, RECEIVER).subject)
    assert await refusal(ledger, signed) == "LEDGER_UNAVAILABLE"


async def test_a_key_is_given_to_nobody_without_an_order_that_names_them(ledger: ErasingLedger) -> None:
    vault, other = await ledger.vaults.open(TENANT), await ledger.vaults.open(OTHER)
    gift = TagKeyGift(vault.vault_id, RECEIVER).subject
    assert await refusal(ledger, ledger.order(GIVE_TAG_KEY, gift), ANOTHER) == "TAG_KEY_FOR_ANOTHER"
    assert await refusal(ledger, ledger.order(GIVE_TAG_KEY, gift, signers=1)) == "ORDER_SIGNATURES_INSUFFICIENT"
    stranger = SignedOrder(Order(TRUST_DOMAIN, GIVE_TAG_KEY, gift, 2**33)).signed_by(Ed25519PrivateKey.generate())
    assert await refusal(ledger, stranger.document) == "ORDER_SIGNATURES_INSUFFICIENT"
    assert await refusal(ledger, ledger.order(ERASE_VAULT, other.vault_id.hex())) == "ORDER_OF_ANOTHER_KIND"
    assert await refusal(ledger, ledger.order(GIVE_TAG_KEY, gift, not_after=int(APRIL))) == "ORDER_EXPIRED"
    assert await refusal(ledger, ledger.order(GIVE_TAG_KEY, vault.vault_id.hex())) == "VAULT_SUBJECT_MALFORMED"
    public = TagKeyGift(PUBLIC_VAULT_ID, RECEIVER).subject
    assert await refusal(ledger, ledger.order(GIVE_TAG_KEY, public)) == "VAULT_SUBJECT_MALFORMED"
    unknown = TagKeyGift(b"\x0c" * 16, RECEIVER).subject
    assert await refusal(ledger, ledger.order(GIVE_TAG_KEY, unknown)) == "VAULT_UNKNOWN"
    assert not ledger.said()


async def test_the_key_of_a_vault_that_is_erased_is_gone(ledger: ErasingLedger) -> None:
    vault = await ledger.vaults.open(TENANT)
    signed = ledger.order(GIVE_TAG_KEY, TagKeyGift(vault.vault_id, RECEIVER).subject)
    await ledger.orders.give_tag_key(signed, RECEIVER)
    await ledger.orders.erase(ledger.order(ERASE_VAULT, vault.vault_id.hex()))
    assert await refusal(ledger, signed) == "VAULT_ERASED"


async def write(router: Router, tenant: str, count: int) -> None:
    vault = await Vaults(router.member, router.ledger, router.receiver).key(tenant)
    for number in range(count):
        body = {"n": number}
        committed = await router.publisher.commit(Kind.RECEIPT, body, vault=vault, timeout=PATIENCE_SECONDS)
        router.publisher.released(committed)


async def key_of(desk: Desk, tenant: str, name: str) -> Path:
    """Have a tenant's key ordered, and get it."""
    order, out = await desk.order(f"{name}-order", "order-tag-key", tenant), desk.folder / f"{name}.tag-key"
    code, said = await desk.ledger("tag-key", str(order), "--out", str(out))
    assert (code, "says entry " in said) == (0, True), said
    return out


async def refused(stub: ledger_pb2_grpc.LedgerServiceStub, signed: bytes) -> str | None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await stub.GetTagKey(ledger_pb2.GetTagKeyRequest(signed_order=signed), timeout=5)
    return reason_of(refusal.value)


async def test_who_is_given_the_key_finds_each_number_of_that_tenant_and_of_no_other(
    live: LiveMesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await live.start()
    desk = Desk(live, tmp_path, capsys)
    async with live.router() as router:
        await write(router, TENANT, 3)
        await write(router, OTHER, 2)
        alone = await desk.order("alone", "order-tag-key", TENANT, signers=1)
        out = tmp_path / "none.tag-key"
        code, said = await desk.ledger("tag-key", str(alone), "--out", str(out))
        assert (code, "ORDER_SIGNATURES_INSUFFICIENT" in said, out.exists()) == (1, True, False)
        code, said = await desk.ledger("submit", str(alone))
        assert (code, "teemesh ledger tag-key" in said) == (1, True)
        own, others = await key_of(desk, TENANT, "own"), await key_of(desk, OTHER, "others")
        assert stat.S_IMODE(own.stat().st_mode) == 0o600
        signed = (tmp_path / "own-order.json").read_bytes()
        # The order is in the log for everybody to read. Another operator, and any service, get nothing by it.
        async with live.operator() as stub:
            assert await refused(stub, signed) == "TAG_KEY_FOR_ANOTHER"
        stub = ledger_pb2_grpc.LedgerServiceStub(await router.ledger.channel(PATIENCE_SECONDS))
        assert await refused(stub, signed) == "ROLE_NOT_ALLOWED"
        await live.kill()
    for key, numbers in ((own, 3), (others, 2)):
        code, said = await desk.run("ledger", "verify", str(live.data_dir), "--tag-key", str(key))
        assert (code, f"the tenant's 1 to {numbers} without a gap" in said) == (0, True), said
    own.write_text("00" * 31 + "01")
    code, said = await desk.run("ledger", "verify", str(live.data_dir), "--tag-key", str(own))
    assert (code, "none of the tenant's" in said) == (0, True)


async def test_an_auditor_is_given_the_key_that_operators_ordered_for_them(
    live: LiveMesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await live.start()
    for name in ("operator", "auditor"):
        (tmp_path / name).mkdir()
    operator, auditor = (Desk(live, tmp_path / name, capsys, role=name) for name in ("operator", "auditor"))
    async with live.router() as router:
        await write(router, TENANT, 1)
        certificate = str(auditor.folder / "operator.pem")
        order = await operator.order("order", "order-tag-key", TENANT, "--receiver", certificate)
        out = str(tmp_path / "tenant.tag-key")
        assert "TAG_KEY_FOR_ANOTHER" in (await operator.ledger("tag-key", str(order), "--out", out))[1]
        code, said = await auditor.ledger("tag-key", str(order), "--out", out)
        assert (code, "says entry " in said) == (0, True), said
        code, said = await auditor.ledger("tag-key", str(order), "--out", out)
        assert (code, "OUTPUT_EXISTS" in said) == (1, True)


async def test_once_the_vault_is_erased_the_key_still_tells_its_entries_and_opens_none(
    live: LiveMesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await live.start()
    desk = Desk(live, tmp_path, capsys)
    async with live.router() as router:
        await write(router, TENANT, 3)
        vault = await Vaults(router.member, router.ledger, router.receiver).key(TENANT)
        path = await key_of(desk, TENANT, "own")
        key = bytes.fromhex(path.read_text())
        released = await released_by_the_kms(live, [vault.vault_id], [vault.epoch])
        before = Loot.of(released, files_below(live.mesh.folder))
        code, said = await desk.ledger("submit", str(await desk.order("erase", "erase", TENANT)))
        assert code == 0, said
    await live.kill()
    loot = Loot.of(released, files_below(live.mesh.folder))
    loot.secrets.add(key)
    rows = [row for _, row in rows_in(live.data_dir) if row.vault_id == vault.vault_id]
    tags = [leaf.parse(row.leaf_data).tag for row in rows]
    assert tags == [leaf_tag(key, number) for number in (1, 2, 3)]
    for row in rows:
        assert before.opens(row) is not None
        assert loot.opens(row) is None
