from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from libs import jcs
from libs.errors import MeshError
from libs.tee.challenge import Challenge, ChallengeMalformed
from tests.unit.libs.tee.bench import NOW, Issuer

MAX_AGE = 300


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer.create()


def _verify(challenge: Challenge, issuer: Issuer, now: int = NOW) -> str:
    try:
        challenge.verify_signed(issuer.spki, now, MAX_AGE)
    except MeshError as refusal:
        return refusal.reason
    return "accepted"


def test_challenge_survives_its_own_bytes_and_still_verifies(issuer: Issuer) -> None:
    challenge = issuer.challenge()
    again = Challenge.decode(challenge.encode())
    assert again == challenge
    assert again.nonce == hashlib.sha256(jcs.dumps(challenge.to_json()["document"])).digest()
    assert _verify(again, issuer) == "accepted"


def test_two_challenges_differ(issuer: Issuer) -> None:
    assert issuer.challenge().nonce != issuer.challenge().nonce


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        (NOW - 61, "CHALLENGE_FROM_FUTURE"),
        (NOW - 60, "accepted"),
        (NOW + MAX_AGE, "accepted"),
        (NOW + MAX_AGE + 1, "CHALLENGE_TOO_OLD"),
    ],
)
def test_age_is_bounded_both_ways(issuer: Issuer, now: int, verdict: str) -> None:
    assert _verify(issuer.challenge(), issuer, now) == verdict


def test_unsigned_challenge_does_not_count_for_others(issuer: Issuer) -> None:
    assert _verify(Challenge.unsigned("a", "b", NOW), issuer) == "CHALLENGE_UNSIGNED"


def test_other_issuers_key_is_refused(issuer: Issuer) -> None:
    assert _verify(Issuer.create().challenge(), issuer) == "CHALLENGE_ISSUER_NOT_TRUSTED"


@pytest.mark.parametrize("change", [{"issuer": "x"}, {"purpose": "x"}, {"issued_at": NOW + 1}, {"random": bytes(32)}])
def test_altered_challenge_is_refused(issuer: Issuer, change: dict[str, Any]) -> None:
    assert _verify(replace(issuer.challenge(), **change), issuer) == "CHALLENGE_SIGNATURE_INVALID"


def test_trusted_certificate_with_another_keys_signature_is_refused(issuer: Issuer) -> None:
    forged = replace(Issuer.create().challenge(), certificate_der=issuer.certificate_der)
    assert _verify(forged, issuer) == "CHALLENGE_SIGNATURE_INVALID"


def test_unreadable_certificate_is_refused(issuer: Issuer) -> None:
    assert _verify(replace(issuer.challenge(), certificate_der=b"\x30\x00"), issuer) == "CHALLENGE_MALFORMED"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("signature",), None),
        (("certificate",), None),
        (("certificate",), "AB"),
        (("document", "issued_at"), -1),
        (("document", "issued_at"), True),
        (("document", "random"), "00" * 31),
        (("document", "issuer"), ""),
        (("document", "purpose"), "x" * 257),
        (("document", "extra"), 1),
        (("extra",), 1),
    ],
)
def test_other_shapes_are_refused(issuer: Issuer, path: tuple[str, ...], value: Any) -> None:
    document = issuer.challenge().to_json()
    target = document
    for name in path[:-1]:
        target = target[name]
    target[path[-1]] = value
    with pytest.raises(ChallengeMalformed):
        Challenge.parse(document)
