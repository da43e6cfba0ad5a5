"""Whoever has every disk of a mesh and every key that its KMS still gives to anyone, and tries to open entries."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from libs import jcs
from libs.errors import MeshError
from libs.events.records import Record, RecordHeader, open_record
from libs.events.vault import VaultKey, derive_vault_key
from libs.identity.sealed import ReceiverKey
from libs.transparency import leaf
from libs.transparency.chain import log_id
from services.ledger.keys import ReleasedKeys
from services.ledger.storage.frames import Row
from services.ledger.storage.segments import Geometry
from tests.fakes.joined_mesh import TRUST_DOMAIN

from .conftest import open_store
from .live import LiveMesh

_KEYRING = b"TMKR"
_COPY, _COPY_HEAD, _COPY_END = b"TMKC0001", 24, 32
"""What goes around a keyring on the disk of a member that another one gave it to."""
_HEAD_SIZE = 20
_HEX_SECRET = re.compile(rb"[0-9a-f]{64}")
_ANY_TENANT = "00" * 16


def files_below(folder: Path) -> dict[Path, bytes]:
    """Everything that is written down; a file that goes meanwhile is not there any more."""
    contents = {}
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                contents[path] = path.read_bytes()
    return contents


def rows_in(ledger_data: Path) -> list[tuple[int, Row]]:
    """Every entry of a ledger that does not run, with its index."""
    with open_store(ledger_data, Geometry()) as store:
        return [(stored.index, stored.row) for stored in store.reader.entries(0, store.head.size)]


async def released_by_the_kms(live: LiveMesh, vaults: Iterable[bytes], epochs: Iterable[int]) -> dict[str, bytes]:
    """Whatever policy allows any role, asked for as a workload of that role does."""
    months = tuple(epochs)
    names: list[tuple[str, str, tuple[int, ...]]]
    names = [("ledger", "ledger-keyring", (0, 1)), ("ledger", "ledger-resume", (0, 1)), ("node", "models/a", (0, 1))]
    names += [("ledger", f"ledger-vault/{vault.hex()}", (0, *months)) for vault in vaults]
    found = {}
    for role in ("ledger", "node"):
        receiver = ReceiverKey()
        claims = {"hpke_key": receiver.public.hex(), **({"models": []} if role == "node" else {})}
        async with live.mesh.member(role, live.kms, instance="thief", claims=claims) as member:
            keys = ReleasedKeys(member.peer("kms", live.kms_target), receiver, lambda: member.spiffe_id)
            for _, name, wanted in (each for each in names if each[0] == role):
                for epoch in wanted:
                    with suppress(MeshError):
                        released = await keys.release(name, epoch)
                        found[f"{name} {released.epoch}"] = released.key
    return found


@dataclass(frozen=True, slots=True)
class Loot:
    """What was taken."""

    released: dict[str, bytes]
    files: dict[Path, bytes]
    secrets: set[bytes] = field(default_factory=set)
    """Every string of 32 bytes that the keyrings hold, or that any file spells out."""

    @classmethod
    def of(cls, released: dict[str, bytes], files: dict[Path, bytes]) -> Loot:
        loot = cls(released, files)
        for data in files.values():
            plain = [data, *(opened for key in released.values() if (opened := _open_keyring(data, key)))]
            for text in plain:
                loot.secrets.update(bytes.fromhex(found.decode()) for found in _HEX_SECRET.findall(text))
        return loot

    def shares(self, vault_id: bytes) -> list[bytes]:
        """Return what the keyring has of one vault."""
        for data in self.files.values():
            for key in self.released.values():
                for vault in jcs.loads_object(_open_keyring(data, key) or b'{"vaults":[]}')["vaults"]:
                    if vault["vault_id"] == vault_id.hex():
                        shares = [share for _, share in vault["epochs"]]
                        return [bytes.fromhex(share) for share in (*shares, vault["tag_share"])]
        return []

    def holding(self, vault_id: bytes) -> set[Path]:
        """Return the files that hold shares of a vault."""
        return {path for path, data in self.files.items() if Loot(self.released, {path: data}).shares(vault_id)}

    def opens(self, row: Row) -> bytes | None:
        """Return what an entry says, if any of it opens it by the formulae of the format."""
        for key in self._vault_keys(row):
            with suppress(MeshError):
                return open_record(_record(row), *_place(row), key).canonical
        return None

    def _vault_keys(self, row: Row) -> Iterator[VaultKey]:
        known = {*self.released.values(), *self.secrets}
        derived = (
            derive_vault_key(half, share, row.vault_id, row.vault_epoch)
            for half, share in product(self.released.values(), known)
        )
        for key in (*known, *derived):
            yield VaultKey(row.vault_id, row.vault_epoch, key, _ANY_TENANT)


def _record(row: Row) -> Record:
    public = leaf.parse(row.leaf_data)
    header = RecordHeader(len(row.body), public.kind, row.vault_epoch, row.vault_id, public.commitment)
    return Record(header, row.body)


def _place(row: Row) -> tuple[bytes, int]:
    public = leaf.parse(row.leaf_data)
    return public.issuer, public.issuer_seq


def _open_keyring(data: bytes, key: bytes) -> bytes | None:
    if data.startswith(_COPY):
        data = data[_COPY_HEAD:-_COPY_END]
    if not data.startswith(_KEYRING):
        return None
    associated = data[:8] + log_id(f"{TRUST_DOMAIN}/ledger/1")
    try:
        return AESGCM(key).decrypt(data[8:_HEAD_SIZE], data[_HEAD_SIZE:], associated)
    except InvalidTag:
        return None
