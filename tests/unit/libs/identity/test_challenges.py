from __future__ import annotations

import pytest

from libs.identity.challenges import LIFETIME_SECONDS, ChallengeNotOpen, Challenges
from tests.fakes.joined_mesh import Clock
from tests.unit.libs.tee.bench import Issuer

ISSUER = Issuer.create()


def challenges(clock: Clock, maximum_age: int) -> Challenges:
    signer = (ISSUER.key, ISSUER.certificate_der)
    return Challenges("kms/1", lambda: signer, clock, maximum_age=lambda: maximum_age)


@pytest.mark.parametrize(("maximum_age", "lifetime"), [(10, 10), (3900, LIFETIME_SECONDS)])
def test_a_challenge_is_open_as_long_as_policy_says_and_never_longer_than_a_minute(
    maximum_age: int, lifetime: int
) -> None:
    clock = Clock()
    issuing = challenges(clock, maximum_age)
    nonces = [issuing.issue("evidence").nonce for _ in range(2)]
    clock.now += lifetime - 1
    issuing.spend(nonces[0], "evidence")
    clock.now += 1
    with pytest.raises(ChallengeNotOpen):
        issuing.spend(nonces[1], "evidence")


def test_a_challenge_is_spent_once_and_by_its_issuer_alone() -> None:
    clock = Clock()
    issuing, other = challenges(clock, 60), challenges(clock, 60)
    nonce = issuing.issue("evidence").nonce
    with pytest.raises(ChallengeNotOpen):
        other.spend(nonce, "evidence")
    issuing.spend(nonce, "evidence")
    with pytest.raises(ChallengeNotOpen):
        issuing.spend(nonce, "evidence")
