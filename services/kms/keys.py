"""It is responsible for wiring what serves keys: releases, statements, lists and changes, all over one book."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from libs.identity.freshness import PolicyKeeper
from services.kms.access import Access
from services.kms.book import KeyBook
from services.kms.ca import CertificateAuthority
from services.kms.currency import Currency
from services.kms.decisions import Decisions
from services.kms.keyring import Keyring
from services.kms.listing import Listing
from services.kms.public import PublicKeys
from services.kms.release import Releases
from services.kms.rotation import Rotation
from services.kms.unlogged import Unlogged


@dataclass(frozen=True, slots=True)
class KeyService:
    """Everything about keys that the KMS serves."""

    book: KeyBook
    releases: Releases
    public: PublicKeys
    listing: Listing
    rotation: Rotation
    unlogged: Unlogged


def open_keys(
    folder: Path,
    kms: str,
    keyring: Keyring,
    ca: CertificateAuthority,
    policy: PolicyKeeper,
    decisions: Decisions,
    currency: Currency,
) -> KeyService:
    """Open the book in a folder, and wire what works on it; `kms` is this instance's SPIFFE ID.

    Raises `KeyBookNotOpened`.
    """
    book = KeyBook(folder, keyring.state_key)
    unlogged = Unlogged(book, decisions)
    access = Access(book, policy, decisions, currency)
    return KeyService(
        book=book,
        releases=Releases(keyring, access, decisions),
        public=PublicKeys(keyring, ca, access, decisions),
        listing=Listing(book, policy, currency),
        rotation=Rotation(kms, book, access, policy, unlogged, currency),
        unlogged=unlogged,
    )
