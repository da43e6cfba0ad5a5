"""An exchange in a file proves what it proved when it was made, and no change of the file adds to that."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import ValidationError

from libs import jcs
from libs.aci.e2ee.suites import SECP256K1_ALGO, SUITES, X25519_ALGO
from libs.client import exchange_file
from libs.client.checks import Check, Materials, run_checks
from libs.client.exchange import OpeningKey
from libs.client.exchange_file import ExchangeFileMalformed
from libs.client.http import RouterRefused
from libs.client.reopening import sealed_to
from libs.client.standing import BY_CHECK, Standing, standing
from libs.errors import MeshError
from tests.fakes.attested_mesh import AttestedMesh
from tests.fakes.entry_schema import require_documented_exchange
from tests.fakes.gathered import gathered

REQUEST, RESPONSE = b'{"messages":[]}', b'{"choices":[]}\xff'
OPENING_KEY = {"algo": X25519_ALGO, "private_key": "5a" * 32, "nonce": "00", "timestamp": 5}


@pytest.fixture(scope="module")
def mesh() -> AttestedMesh:
    return AttestedMesh.create(int(time.time()))


@pytest.fixture(scope="module")
def honest(mesh: AttestedMesh) -> Materials:
    return gathered(mesh, REQUEST, RESPONSE)


def kept(materials: Materials) -> dict[str, Any]:
    data = exchange_file.encode(materials)
    require_documented_exchange(data)
    value: dict[str, Any] = json.loads(data)
    return value


def read(value: object, honest: Materials) -> Materials:
    return exchange_file.decode(jcs.dumps(value), honest.policy, honest.mesh_ca)


def judged(value: object, honest: Materials) -> tuple[Standing, dict[int, str | None]]:
    checks = run_checks(read(value, honest))
    return standing(checks), {check.number: check.reason for check in checks if not check.passed}


def test_what_was_kept_is_what_comes_back(honest: Materials) -> None:
    assert read(kept(honest), honest) == honest
    assert judged(kept(honest), honest) == (Standing.COMPLETE, {})


def test_neither_policy_nor_ca_come_from_the_file(honest: Materials, mesh: AttestedMesh) -> None:
    """What is trusted is the reader's: the file has no place for it."""
    data = exchange_file.encode(honest)
    assert mesh.policy().document.hex().encode() not in data
    other = AttestedMesh.create(mesh.now)
    checks = run_checks(exchange_file.decode(data, other.policy(), other.ca.der))
    assert standing(checks) is Standing.UNATTESTED
    assert not {check.number for check in checks if check.passed} & {1, 2, 3, 7, 9, 10, 11, 12}


@pytest.mark.parametrize(
    "name", ["receipt", "session", "commitment", "issuer_evidence", "acknowledger_evidence", "ledger_evidence"]
)
def test_what_the_router_did_not_give_is_kept_as_missing_with_its_words(honest: Materials, name: str) -> None:
    refused = RouterRefused(404, "not_found", "nothing \ud800 of \x00 that kind")
    value = kept(replace(honest, **{name: refused}))  # type: ignore[arg-type]  # Any one of them.
    assert value["proofs"][name]["missing"] == "ROUTER_REFUSED"
    missing = getattr(read(value, honest), name)
    assert isinstance(missing, MeshError)
    assert missing.reason == "PROOF_MISSING"
    assert "nothing \\ud800 of \x00 that kind" in str(missing)
    assert "PROOF_MISSING" in judged(value, honest)[1].values()


def test_missing_and_kept_sessions_of_a_provider_are_told_apart(honest: Materials) -> None:
    refused = RouterRefused(404, "not_found", "none")
    for foreign in (None, b"its session"):
        assert read(kept(replace(honest, foreign_session=foreign)), honest).foreign_session == foreign
    missing = read(kept(replace(honest, foreign_session=refused)), honest).foreign_session
    assert isinstance(missing, MeshError)


def test_response_that_was_not_kept_makes_no_file(honest: Materials) -> None:
    with pytest.raises(ValueError, match="not kept"):
        exchange_file.encode(replace(honest, exchange=replace(honest.exchange, response=None)))


def _flip(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        for name in path[:-1]:
            value = value[name]
        text = value[path[-1]]
        value[path[-1]] = text[:-1] + f"{int(text[-1], 16) ^ 1:x}"

    return change


def _commitment(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
    def outer(value: dict[str, Any]) -> None:
        inner = json.loads(bytes.fromhex(value["proofs"]["commitment"]))
        change(inner)
        value["proofs"]["commitment"] = jcs.dumps(inner).hex()

    return outer


def _delay(value: dict[str, Any]) -> None:
    value["exchange"]["sent_at_ms"] += 300_000
    value["exchange"]["received_at_ms"] += 300_000
    value["gathered_at"] += 300


def _keep_an_hour(value: dict[str, Any]) -> None:
    value["gathered_at"] += 3_601


@pytest.mark.parametrize(
    ("change", "stands", "number", "reason"),
    [
        (_flip("router", "report"), Standing.UNATTESTED, 1, "JSON_MALFORMED"),
        (_flip("router", "nonce"), Standing.UNATTESTED, 1, "REPORT_DATA_MISMATCH"),
        (lambda value: value["router"].update(tls_keys=["00" * 32]), Standing.UNATTESTED, 2, "TLS_KEY_NOT_ATTESTED"),
        (lambda value: value["router"].update(tls_keys=[]), Standing.UNATTESTED, 2, "CONNECTION_UNKNOWN"),
        (_flip("exchange", "request"), Standing.MISFIT, 4, "REQUEST_NOT_RECEIPTED"),
        (_flip("exchange", "response"), Standing.MISFIT, 5, "RESPONSE_NOT_RECEIPTED"),
        (lambda value: value["exchange"].update(response=""), Standing.MISFIT, 5, "RESPONSE_NOT_RECEIPTED"),
        (_delay, Standing.UNVERIFIED, 6, "SERVED_AT_IMPLAUSIBLE"),
        (_flip("proofs", "session"), Standing.UNVERIFIED, 7, "JSON_MALFORMED"),
        (_flip("proofs", "issuer_evidence"), Standing.UNLOGGED, 9, "EVIDENCE_NOT_THE_NAMED_ONE"),
        (_flip("proofs", "acknowledger_evidence"), Standing.UNLOGGED, 10, "EVIDENCE_NOT_THE_NAMED_ONE"),
        (_flip("proofs", "ledger_evidence"), Standing.UNSHOWN, 12, "EVIDENCE_NOT_THE_NAMED_ONE"),
        (lambda value: value["exchange"].update(receipt_id="rcpt-2"), Standing.MISFIT, 5, "RECEIPT_NOT_THE_NAMED_ONE"),
        (lambda value: value["exchange"].update(receipt_id=None), Standing.MISFIT, 5, "RECEIPT_NOT_THE_NAMED_ONE"),
        (lambda value: value["exchange"].update(broken_off="X"), Standing.UNREAD, 13, "ANSWER_NOT_WHOLE"),
        (_keep_an_hour, Standing.UNSHOWN, 12, "CERTIFICATE_NOT_ACCEPTED"),
        (_commitment(_flip("salt")), Standing.UNLOGGED, 8, "ENTRY_NOT_COMMITTED"),
        (_commitment(_flip("acknowledgement", "signature")), Standing.UNLOGGED, 11, "ACKNOWLEDGEMENT_INVALID"),
        (_commitment(_flip("acknowledgement", "statement")), Standing.UNLOGGED, 11, "ACKNOWLEDGEMENT_INVALID"),
        (_commitment(_flip("inclusion", "leaf_hash")), Standing.UNSHOWN, 12, "PROOF_INVALID"),
        (
            _commitment(lambda inner: inner.update(checkpoint=inner["checkpoint"].replace("\n6\n", "\n7\n"))),
            Standing.UNSHOWN,
            12,
            "NOTE_SIGNATURE_INVALID",
        ),
    ],
)
def test_a_change_of_any_part_is_told_by_its_own_status(
    honest: Materials, change: Callable[[dict[str, Any]], None], stands: Standing, number: int, reason: str
) -> None:
    value = kept(honest)
    change(value)
    found, failures = judged(value, honest)
    assert (found, failures[number]) == (stands, reason)
    assert min(failures, key=lambda each: (BY_CHECK[each], each)) == number


def test_receipt_by_a_key_that_is_not_attested_is_unattested(honest: Materials, mesh: AttestedMesh) -> None:
    stranger = AttestedMesh.create(mesh.now)
    value = kept(honest)
    value["proofs"]["receipt"] = stranger.serve(REQUEST, RESPONSE).receipt.hex()
    found, failures = judged(value, honest)
    assert (found, failures[3]) == (Standing.UNATTESTED, "RECEIPT_SIGNATURE_INVALID")


def test_answer_without_anything_of_the_log_still_shows_who_served_it(honest: Materials) -> None:
    refused = RouterRefused(404, "not_found", "not there")
    nothing = replace(
        honest, commitment=refused, issuer_evidence=refused, acknowledger_evidence=refused, ledger_evidence=refused
    )
    found, failures = judged(kept(nothing), honest)
    assert (found, set(failures.values())) == (Standing.UNLOGGED, {"PROOF_MISSING"})
    assert failures.keys() == {8, 9, 10, 11, 12}


def test_every_check_has_a_standing_and_none_failed_is_complete(honest: Materials) -> None:
    assert standing(run_checks(honest)) is Standing.COMPLETE
    all_checks = run_checks(replace(honest, exchange=replace(honest.exchange, broken_off="X")))
    assert [check.number for check in all_checks] == list(BY_CHECK)
    checks = [replace(check, passed=True) for check in all_checks]
    for check in checks:
        failed = Check(check.number, check.name, False, "", "REASON")
        assert standing([failed, *(other for other in checks if other is not check)]) is BY_CHECK[check.number]


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(v=2),
        lambda value: value.update(v=True),
        lambda value: value["exchange"].update(broken_off=None),
        lambda value: value["exchange"].update(opening_key=None),
        lambda value: value["exchange"].update(opening_key=OPENING_KEY | {"algo": "rot13"}),
        lambda value: value["exchange"].update(opening_key=OPENING_KEY | {"algo": ["x"]}),
        lambda value: value["exchange"].update(opening_key=OPENING_KEY | {"private_key": "00"}),
        lambda value: value["exchange"].update(opening_key=OPENING_KEY | {"timestamp": -1}),
        lambda value: value.update(policy="{}"),
        lambda value: value.pop("gathered_at"),
        lambda value: value["router"].pop("nonce"),
        lambda value: value["router"].update(tls_keys="00" * 32),
        lambda value: value["exchange"].update(response="0"),
        lambda value: value["exchange"].update(request="AA"),
        lambda value: value["exchange"].update(sent_at_ms=-1),
        lambda value: value["proofs"].pop("foreign_session"),
        lambda value: value["proofs"].update(commitment=None),
        lambda value: value["proofs"].update(commitment={"missing": "X"}),
    ],
)
def test_another_form_is_refused_and_undocumented(honest: Materials, change: Callable[[dict[str, Any]], None]) -> None:
    value = kept(honest)
    change(value)
    with pytest.raises(ExchangeFileMalformed):
        read(value, honest)
    with pytest.raises(ValidationError):
        require_documented_exchange(jcs.dumps(value))


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value["exchange"].update(sent_at_ms=value["exchange"]["received_at_ms"] + 1),
        lambda value: value["exchange"].update(received_at_ms=value["exchange"]["received_at_ms"] + 3_600_000),
        lambda value: value.update(gathered_at=value["gathered_at"] - 300),
    ],
)
def test_times_that_cannot_follow_each_other_are_refused(
    honest: Materials, change: Callable[[dict[str, Any]], None]
) -> None:
    value = kept(honest)
    change(value)
    with pytest.raises(ExchangeFileMalformed, match="comes after"):
        read(value, honest)


def test_proofs_may_be_gathered_in_the_second_in_which_the_answer_came(honest: Materials) -> None:
    just = replace(honest, exchange=replace(honest.exchange, received_at=honest.now + 0.999))
    assert judged(kept(just), honest) == (Standing.COMPLETE, {})


def test_key_of_an_encrypted_request_comes_back(honest: Materials) -> None:
    for suite in SUITES.values():
        key = OpeningKey(suite.algo, suite.key().secret, "5a" * 32, 5)
        sealed = replace(honest, exchange=replace(honest.exchange, sealed_to=sealed_to(key), opening_key=key))
        assert read(kept(sealed), honest) == sealed


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_number_that_is_no_key_is_refused(honest: Materials, secret: bytes) -> None:
    value = kept(honest)
    value["exchange"]["opening_key"] = OPENING_KEY | {"algo": SECP256K1_ALGO, "private_key": secret.hex()}
    with pytest.raises(ExchangeFileMalformed):
        read(value, honest)


@pytest.mark.parametrize("algo", SUITES)
def test_key_that_the_receipt_does_not_name_fits_no_answer(honest: Materials, algo: str) -> None:
    value = kept(honest)
    value["exchange"]["opening_key"] = OPENING_KEY | {"algo": algo}
    found, failures = judged(value, honest)
    assert (found, failures[4], failures[13]) == (Standing.MISFIT, "SEALED_FOR_ANOTHER", "ANSWER_NOT_SEALED")


MAKERS_WORD = {
    ("gathered_at",),
    ("router", "host"),
    ("exchange", "sent_at_ms"),
    ("exchange", "received_at_ms"),
    ("proofs", "foreign_session"),
}
"""What may be something else and prove as much: times, within their bounds, a host that the keyset does not name, and
the session of a provider that did not serve."""


@given(data=st.data())
@settings(max_examples=250, deadline=None)
def test_anything_in_any_place_is_refused_or_not_complete_unless_it_is_the_makers_word(
    honest: Materials, data: st.DataObject
) -> None:
    value = json.loads(exchange_file.encode(honest))
    before, holder, path = jcs.dumps(value), value, list[str]()
    while True:
        path.append(name := data.draw(st.sampled_from(sorted({*holder, "broken_off", "opening_key"}))))
        below = holder.get(name)
        if not isinstance(below, dict) or data.draw(st.booleans()):
            break
        holder = below
    anything: st.SearchStrategy[Any] = (
        st.none() | st.booleans() | st.integers(-1, 2**53 - 1) | st.text(max_size=5) | st.just({}) | st.just([1])
    )
    holder[name] = data.draw(anything)
    with suppress(ExchangeFileMalformed):
        checks = run_checks(read(value, honest))
        assert len(checks) >= 12
        assert standing(checks) is not Standing.COMPLETE or tuple(path) in MAKERS_WORD or jcs.dumps(value) == before


@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused(honest: Materials, data: bytes) -> None:
    with pytest.raises(ExchangeFileMalformed):
        exchange_file.decode(data, honest.policy, None)
