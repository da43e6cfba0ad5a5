from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from libs import jcs
from libs.errors import MeshError
from libs.policy.document import Policy, PolicyMalformed, parse
from libs.policy.revocation import (
    MAX_REVOCATION_BYTES,
    NO_REVOCATIONS_DIGEST,
    Revocation,
    RevocationKind,
    RevocationMalformed,
    RevocationSet,
    SignedRevocation,
    parse_revocation,
    sign_revocation,
    verify_revocation,
)
from libs.policy.revoked import NOTHING_REVOKED, revoked_by

MESH = "mesh.local"
KEY = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
OPERATOR = KEY.public_key().public_bytes_raw()
VALUES = {
    RevocationKind.MEASUREMENT: "ab" * 32,
    RevocationKind.DEVICE: "cd" * 32,
    RevocationKind.CPU_FAMILY: "00906ed50000",
    RevocationKind.KEY: "ef" * 32,
    RevocationKind.NODE: f"spiffe://{MESH}/node/one",
    RevocationKind.TENANT: "12" * 16,
}


def revocation(kind: RevocationKind = RevocationKind.MEASUREMENT, **changes: Any) -> Revocation:
    return replace(Revocation(MESH, kind, VALUES[kind], "CVE-2026-1", 1_800_000_000_000), **changes)


def signed(number: int, kind: RevocationKind = RevocationKind.MEASUREMENT) -> SignedRevocation:
    return sign_revocation(revocation(kind, time_ms=number), KEY)


def refusal(document: SignedRevocation, mesh: str = MESH) -> str:
    with pytest.raises(MeshError) as error:
        verify_revocation(document, {OPERATOR}, mesh)
    return error.value.reason


@pytest.mark.parametrize("kind", RevocationKind)
def test_what_one_operator_signs_is_read_back(kind: RevocationKind) -> None:
    document = sign_revocation(revocation(kind), KEY)
    assert parse_revocation(document.document) == document
    verify_revocation(document, {OPERATOR}, MESH)


def test_the_signature_is_over_the_id_in_its_own_context() -> None:
    document = sign_revocation(revocation(), KEY)
    KEY.public_key().verify(document.signature, b"teemesh/revocation/v1\0" + document.revocation.id)
    for other in (document.revocation.id, b"teemesh/policy/v1\0" + document.revocation.id):
        assert refusal(replace(document, signature=KEY.sign(other))) == "REVOCATION_SIGNATURE_INVALID"


def test_an_unsigned_revocation_is_refused() -> None:
    assert refusal(SignedRevocation(revocation(), OPERATOR, bytes(64))) == "REVOCATION_SIGNATURE_INVALID"


def test_a_strangers_revocation_is_refused() -> None:
    stranger = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
    assert refusal(sign_revocation(revocation(), stranger)) == "REVOCATION_SIGNATURE_INVALID"
    named = replace(sign_revocation(revocation(), stranger), key=OPERATOR)
    assert refusal(named) == "REVOCATION_SIGNATURE_INVALID"


def test_a_revocation_for_another_mesh_is_refused() -> None:
    assert refusal(sign_revocation(revocation(), KEY), "other.local") == "REVOCATION_OF_ANOTHER_MESH"


@pytest.mark.parametrize("change", [{"value": "cd" * 32}, {"reason": "none"}, {"time_ms": 0}])
def test_a_changed_revocation_is_refused(change: dict[str, Any]) -> None:
    document = sign_revocation(revocation(), KEY)
    changed = replace(document, revocation=replace(document.revocation, **change))
    assert refusal(changed) == "REVOCATION_SIGNATURE_INVALID"


@pytest.mark.parametrize(
    "change",
    [
        {"v": 2},
        {"kind": "service"},
        {"kind": "device,measurement"},
        {"value": "AB" * 32},
        {"value": "ab"},
        {"reason": ""},
        {"reason": "a" * 257},
        {"reason": "\u001b[2J"},
        {"time_ms": -1},
        {"trust_domain": "Mesh"},
        {"extra": 1},
    ],
)
def test_what_is_not_exactly_a_revocation_is_refused(change: dict[str, Any]) -> None:
    document = sign_revocation(revocation(), KEY)
    members = {**document.revocation.members, **change}
    whole = jcs.dumps({"revocation": members, "signature": jcs.loads(document.document)["signature"]})
    with pytest.raises(RevocationMalformed):
        parse_revocation(whole)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (RevocationKind.NODE, "spiffe://other.local/node/one"),
        (RevocationKind.NODE, f"spiffe://{MESH}/tenant/ada"),
        (RevocationKind.NODE, f"spiffe://{MESH}/operator/ada/node"),
        (RevocationKind.NODE, f"spiffe://{MESH}/node/"),
        (RevocationKind.TENANT, "12" * 32),
        (RevocationKind.CPU_FAMILY, "rome"),
        (RevocationKind.KEY, "12" * 16),
        (RevocationKind.DEVICE, "gpu-0"),
    ],
)
def test_a_value_of_another_form_than_its_kinds_is_not_even_signed(kind: RevocationKind, value: str) -> None:
    with pytest.raises(RevocationMalformed, match="value"):
        sign_revocation(revocation(kind, value=value), KEY)


@pytest.mark.parametrize("role", ["agent", "auditor", "broker", "kms", "operator", "router"])
def test_whoever_has_a_name_can_be_revoked_by_it(role: str) -> None:
    value = f"spiffe://{MESH}/{role}/ada"
    signed = parse_revocation(sign_revocation(revocation(RevocationKind.NODE, value=value), KEY).document)
    assert revoked_by([signed.revocation]).spiffe_ids == {value}


def test_a_gpu_is_named_by_its_ueid() -> None:
    verify_revocation(sign_revocation(revocation(RevocationKind.DEVICE, value="4815162342"), KEY), {OPERATOR}, MESH)


@given(data=st.binary(max_size=300))
def test_hostile_bytes_raise_only_the_refusal(data: bytes) -> None:
    with pytest.raises(RevocationMalformed):
        parse_revocation(data)


def test_a_document_that_is_too_large_is_not_read() -> None:
    with pytest.raises(RevocationMalformed, match="larger"):
        parse_revocation(b" " * (MAX_REVOCATION_BYTES + 1))


def test_a_set_does_not_depend_on_the_order_in_which_it_was_learned() -> None:
    members = [signed(number) for number in range(3)]
    sets = []
    for order in itertools.permutations(members):
        known = RevocationSet()
        for each in order:
            known = known.union([each])
        sets.append(known)
    assert {known.digest for known in sets} == {RevocationSet().union(members).digest}
    assert {known.number for known in sets} == {3}


def test_a_set_only_grows() -> None:
    known = RevocationSet().union([signed(1), signed(2)])
    assert known.union([]) == known
    assert known.union([signed(1)]) == known
    grown = known.union([signed(3)])
    assert grown.signed.keys() > known.signed.keys()
    assert grown.digest != known.digest


def test_two_operators_signatures_on_one_revocation_are_one_member() -> None:
    other = sign_revocation(signed(1).revocation, Ed25519PrivateKey.from_private_bytes(b"p" * 32))
    known = RevocationSet().union([signed(1)])
    assert known.union([other]) == known


def test_nothing_revoked_has_its_own_digest() -> None:
    assert RevocationSet().digest == NO_REVOCATIONS_DIGEST
    assert RevocationSet().number == 0


def test_what_is_lifted_counts_no_more_and_stays_known() -> None:
    known = RevocationSet().union([signed(1), signed(2, RevocationKind.DEVICE)])
    left = list(known.active({signed(1).revocation.id}))
    assert left == [signed(2, RevocationKind.DEVICE).revocation]
    assert known.number == 2


def test_every_kind_is_looked_up_in_its_own_place() -> None:
    revoked = revoked_by(revocation(kind) for kind in RevocationKind)
    assert revoked.compose_hashes == {VALUES[RevocationKind.MEASUREMENT]}
    assert revoked.devices == {VALUES[RevocationKind.DEVICE]}
    assert revoked.cpu_families == {VALUES[RevocationKind.CPU_FAMILY]}
    assert revoked.keys == {VALUES[RevocationKind.KEY]}
    assert revoked.spiffe_ids == {VALUES[RevocationKind.NODE]}
    assert revoked.tenants == {VALUES[RevocationKind.TENANT]}
    assert revoked_by([]) == NOTHING_REVOKED


def policy(draft: dict[str, Any], *lifted: SignedRevocation) -> Policy:
    return parse(jcs.dumps({**draft, "lifted_revocations": [each.revocation.id.hex() for each in lifted]}))


def test_a_policy_counts_without_what_is_revoked_and_is_the_same_document(draft: dict[str, Any]) -> None:
    before = policy(draft)
    after = before.under(RevocationSet().union([signed(1)]))
    assert after.revoked.compose_hashes == {VALUES[RevocationKind.MEASUREMENT]}
    assert (after.document, after.digest) == (before.document, before.digest)
    assert after.under(RevocationSet()) == before


def test_a_replayed_revocation_stays_lifted(draft: dict[str, Any]) -> None:
    lifting = policy(draft, signed(1))
    assert lifting.under(RevocationSet().union([signed(1)])).revoked == NOTHING_REVOKED
    again = lifting.under(RevocationSet().union([signed(1), signed(2)]))
    assert again.revoked.compose_hashes == {VALUES[RevocationKind.MEASUREMENT]}


@pytest.mark.parametrize("wrong", [["ab"], [1], "ab" * 32, ["ab" * 32, "ab" * 32]])
def test_a_policy_lifts_by_id_or_is_refused(draft: dict[str, Any], wrong: object) -> None:
    with pytest.raises(PolicyMalformed, match="lifted_revocations"):
        parse(jcs.dumps({**draft, "lifted_revocations": wrong}))
