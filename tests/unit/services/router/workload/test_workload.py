"""Which keyset a router serves under, which it still honours, and what is left of one that has ended: nothing."""

from __future__ import annotations

import gc

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.aci import keyset as keysets
from libs.aci.keyset import TlsKey
from services.router.errors import KeysetEnded
from services.router.workload.generation import Generation
from services.router.workload.settings import KeysetSettings
from services.router.workload.workload import Workload

BEGAN = 1_750_000_000
LIFE = 700
TLS = "ab" * 32


class Clock:
    def __init__(self) -> None:
        self.now = float(BEGAN)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def workload(clock: Clock) -> Workload:
    return Workload("spiffe://mesh.test/router/1", LIFE, (TlsKey(TLS),), clock)


@pytest.fixture
def both(workload: Workload, clock: Clock) -> tuple[Generation, Generation]:
    """The first keyset, and the one that replaced it a hundred seconds before its end."""
    first = workload.newest
    clock.now += LIFE - 100
    workload.serve(second := workload.bear())
    return first, second


def keys_of(generation: Generation) -> set[str]:
    keyset = generation.keyset
    return {key.public_key for key in (*keyset.receipt_signing_keys, *keyset.e2ee_public_keys)}


def test_every_keyset_has_keys_and_names_of_its_own_and_the_same_tls_key(both: tuple[Generation, Generation]) -> None:
    first, second = both
    assert keys_of(first).isdisjoint(keys_of(second))
    names = [{key.key_id for key in one.keyset.receipt_signing_keys + one.keyset.e2ee_public_keys} for one in both]
    assert names[0].isdisjoint(names[1])
    assert first.keyset.pins("any.example") == second.keyset.pins("any.example") == {TLS}
    assert (first.not_after, second.not_after) == (BEGAN + LIFE, BEGAN + LIFE - 100 + LIFE)
    assert first.digest != second.digest


def test_a_keyset_that_is_born_is_served_to_nobody(workload: Workload) -> None:
    first, born = workload.newest, workload.bear()
    assert workload.headers()["X-ACI-Keyset-Digest"] == first.digest
    assert workload.held() == (first,)
    assert workload.lasting(0, born.digest) is first
    assert workload.listing(born.e2ee_keys[0].private.public.hex()) is None


def test_clients_that_name_none_are_served_under_the_newest(
    workload: Workload, both: tuple[Generation, Generation]
) -> None:
    assert workload.lasting(10) is both[1]
    assert workload.lasting(10, "sha256:" + "00" * 32) is both[1]
    assert workload.headers()["X-ACI-Keyset-Digest"] == both[1].digest == workload.keyset_digest


def test_a_client_that_verified_the_one_before_is_served_under_that_until_it_ends(
    workload: Workload, both: tuple[Generation, Generation], clock: Clock
) -> None:
    first, second = both
    assert workload.lasting(10, first.digest) is first
    clock.now = first.not_after - 10.5
    assert workload.lasting(10, first.digest) is first
    clock.now = first.not_after - 10
    assert workload.lasting(10, first.digest) is second, "it would end before its receipt is signed"
    clock.now = first.not_after
    assert workload.lasting(0, first.digest) is second


def test_a_prompt_may_come_encrypted_to_a_keyset_until_that_ends_and_not_a_second_longer(
    workload: Workload, both: tuple[Generation, Generation], clock: Clock
) -> None:
    first, second = both
    old, new = (one.e2ee_keys[0] for one in both)
    clock.now = first.not_after - 1
    assert workload.listing(old.private.public.hex()) == (first, old)
    clock.now = first.not_after
    assert workload.listing(old.private.public.hex()) is None
    assert workload.listing(new.private.public.hex()) == (second, new)


def test_private_keys_go_when_their_keyset_ends(workload: Workload, clock: Clock) -> None:
    clock.now += LIFE - 100
    workload.serve(workload.bear())
    held = [one for one in gc.get_objects() if isinstance(one, Generation) and one.not_after == BEGAN + LIFE]
    assert len(held) == 1
    held.clear()
    clock.now = BEGAN + LIFE
    workload.drop_ended()
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, Generation) and one.not_after == BEGAN + LIFE]


def test_nothing_is_served_under_a_keyset_that_has_ended(workload: Workload, clock: Clock) -> None:
    clock.now = BEGAN + LIFE - 10
    with pytest.raises(KeysetEnded):
        workload.lasting(10)
    assert workload.lasting(9) is workload.newest
    clock.now = BEGAN + LIFE
    with pytest.raises(KeysetEnded):
        workload.lasting(0)
    assert workload.held() == ()
    workload.serve(following := workload.bear())
    assert workload.lasting(0) is following
    assert workload.held() == (following,)


def test_a_clock_that_is_put_back_brings_no_keyset_back(
    workload: Workload, both: tuple[Generation, Generation], clock: Clock
) -> None:
    first, second = both
    clock.now = first.not_after
    workload.drop_ended()
    clock.now -= 50
    assert workload.lasting(0, first.digest) is second
    clock.now = second.not_after
    assert workload.held() == ()
    clock.now -= 50
    assert workload.held() == ()


def test_a_keyset_lists_what_its_verifier_takes(workload: Workload) -> None:
    keyset = keysets.parse(workload.newest.keyset.document())
    keysets.verify_usable(keyset, now=BEGAN, longest_seconds=LIFE)
    public = Ed25519PrivateKey.from_private_bytes(workload.newest.receipt_key.private_bytes_raw()).public_key()
    assert keyset.receipt_key(workload.newest.receipt_key_id) == public.public_bytes_raw()


def test_an_images_digest_is_of_an_image_or_of_sources() -> None:
    with pytest.raises(ValueError, match="image_digest_of"):
        KeysetSettings(image_digest_of="commit")
