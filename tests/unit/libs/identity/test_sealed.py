from __future__ import annotations

import pytest

from libs.identity.sealed import HpkeKeyMissing, ReceiverKey, SealedKeyRefused, release_info, seal

LEDGER = "spiffe://mesh.test/ledger/1"
SECRET = bytes(range(32))
INFO = release_info("ledger-keyring", 1, LEDGER)


def test_the_receiver_alone_opens_what_was_sealed_to_its_key() -> None:
    receiver = ReceiverKey()
    sealed = seal(SECRET, receiver.public.hex(), INFO)
    assert receiver.open(sealed, INFO) == SECRET
    with pytest.raises(SealedKeyRefused):
        ReceiverKey().open(sealed, INFO)


@pytest.mark.parametrize(
    "info",
    [
        release_info("ledger-resume", 1, LEDGER),
        release_info("ledger-keyring", 2, LEDGER),
        release_info("ledger-keyring", 1, "spiffe://mesh.test/ledger/2"),
        release_info("ledger-keyrin", 1, "g" + LEDGER),  # The same bytes in another order of parts.
        b"",
    ],
)
def test_a_key_sealed_for_another_name_epoch_or_receiver_does_not_open(info: bytes) -> None:
    receiver = ReceiverKey()
    with pytest.raises(SealedKeyRefused):
        receiver.open(seal(SECRET, receiver.public.hex(), INFO), info)


def test_a_damaged_key_does_not_open() -> None:
    receiver = ReceiverKey()
    sealed = seal(SECRET, receiver.public.hex(), INFO)
    for damaged in (b"", sealed[:-1], sealed + b"\0", bytes([sealed[0] ^ 1]) + sealed[1:], SECRET):
        with pytest.raises(SealedKeyRefused):
            receiver.open(damaged, INFO)


@pytest.mark.parametrize("hpke_key", [None, 7, "", "zz", "00" * 32, "00" * 1217, "ff" * 1216])
def test_without_a_usable_key_in_the_evidence_nothing_is_sealed(hpke_key: object) -> None:
    with pytest.raises(HpkeKeyMissing):
        seal(SECRET, hpke_key, INFO)
