"""The whole log, read from its first leaf as an operator reads it, and every entry of it opened.

What lies in a tenant's vault is opened as a router opens it: attested by the software TEE under the router's own
measurement, with the vault's key from the ledger.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import tomllib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.events.keyset import parse_keyset
from libs.events.records import Entry, Record, RecordHeader, open_record, parse_entry
from libs.events.vault import PUBLIC_VAULT_ID, VaultKey
from libs.identity.member import MemberSettings, join
from libs.identity.sealed import ReceiverKey, release_info
from libs.rpc.channel import open_channel
from libs.transparency import checkpoint, leaf
from libs.transparency.chain import chain_next, chain_start, entry_id
from libs.transparency.leaf import Kind, Leaf
from libs.transparency.merkle import EMPTY_ROOT, leaf_hash, node_hash
from tests.faults.patience import until
from tests.mesh.running import RunningMesh

_PATIENCE_SECONDS = 60.0
_CALL_SECONDS = 10.0
_REFUSALS = frozenset({Kind.GAP, Kind.CONFLICT, Kind.QUARANTINE})


@dataclass(frozen=True, slots=True)
class Logged:
    """One entry of the log."""

    index: int
    leaf: Leaf
    entry: Entry

    @property
    def entry_id(self) -> bytes:
        return entry_id(self.leaf.issuer, self.leaf.issuer_seq)


@dataclass(frozen=True, slots=True)
class WholeLog:
    """A log that was read from its beginning."""

    entries: tuple[Logged, ...]

    def of(self, kind: Kind) -> list[Logged]:
        return [logged for logged in self.entries if logged.leaf.kind is kind]

    def receipts(self) -> dict[str, Logged]:
        """By receipt id, each of which is there once."""
        found = self.of(Kind.RECEIPT)
        by_id = {logged.entry.body["receipt_id"]: logged for logged in found}
        assert len(by_id) == len(found), "a receipt is in the log twice"
        return by_id

    def amendments(self) -> dict[str, Logged]:
        """By the id of the entry that each is about."""
        return {logged.entry.body["entry_id"]: logged for logged in self.of(Kind.AMENDMENT)}

    def holes(self) -> list[str]:
        """What an issuer's own numbers say is missing: between them, or at the end that its successor names."""
        numbers: dict[bytes, set[int]] = defaultdict(set)
        for logged in self.entries:
            numbers[logged.leaf.issuer].add(logged.leaf.issuer_seq)
        last = {issuer: max(found) for issuer, found in numbers.items()}
        for keyset in self.of(Kind.KEYSET):
            if (previous := parse_keyset(keyset.entry.body).previous) is not None:
                last[previous.issuer] = max(previous.last_seq, last.get(previous.issuer, 0))
        return [
            f"issuer {issuer.hex()[:12]} wrote up to {end}, and the log lacks {sorted(missing)}"
            for issuer, end in last.items()
            if (missing := set(range(1, end + 1)) - numbers[issuer])
        ]

    @property
    def overtaken(self) -> int:
        """How many entries came after a later one of their issuer: sent again, because the broker was killed."""
        highest: Counter[bytes] = Counter()
        count = 0
        for logged in self.entries:
            count += logged.leaf.issuer_seq < highest[logged.leaf.issuer]
            highest[logged.leaf.issuer] = max(highest[logged.leaf.issuer], logged.leaf.issuer_seq)
        return count

    def verify_sequences(self) -> None:
        """Every issuer's numbers are there from 1, each once, and nothing was refused."""
        names = [(logged.leaf.issuer, logged.leaf.issuer_seq) for logged in self.entries]
        assert len(set(names)) == len(names), "an entry is in the log twice"
        assert self.holes() == []
        refusals = [logged.leaf.kind.name for logged in self.entries if logged.leaf.kind in _REFUSALS]
        assert not refusals, f"the ledger refused or missed something: {Counter(refusals)}"


class LogReader:
    """Reads the log of a running mesh. Open with `log_reader`."""

    def __init__(self, mesh: RunningMesh, vault: VaultKey, *, own_only: bool = False) -> None:
        """With `own_only`, what lies in other tenants' vaults is verified with the rest of the log, and left closed."""
        self._mesh = mesh
        self._vault = vault
        self._own_only = own_only

    async def read(self) -> WholeLog:
        """Read from leaf 0 to the present end, verifying the chain and the newest checkpoint's root.

        A ledger that has just started has none yet to show; it is asked again, for a minute.
        """
        read: list[WholeLog] = []

        async def is_signed() -> bool:
            read.extend(await self._read())
            return bool(read)

        async with asyncio.timeout(_PATIENCE_SECONDS):
            await until(is_signed, poll_seconds=0.5)
        return read[0]

    async def _read(self) -> list[WholeLog]:
        """Return what is there, or nothing where no checkpoint is."""
        mesh = self._mesh
        origin = f"{mesh.mesh['trust_domain']}/ledger/1"
        head, hashes, found, newest = chain_start(origin), list[bytes](), list[Logged](), b""
        async with open_channel(
            mesh.mesh["ledger_grpc"],
            root_pem=mesh.file("mesh_ca"),
            server_name=f"ledger.{mesh.mesh['trust_domain']}",
            key_pem=mesh.file("operator_key"),
            certificate_pem=mesh.file("operator_cert"),
        ) as channel:
            stub = ledger_pb2_grpc.LedgerServiceStub(channel)
            async for response in stub.Tail(ledger_pb2.TailRequest(from_index=0, max_batch=256), timeout=60):
                for logged in response.entries:
                    assert logged.index == len(hashes), "the tail skipped a leaf"
                    hashes.append(leaf_hash(logged.leaf_data))
                    head = chain_next(head, logged.index, hashes[-1])
                    if not self._own_only or logged.vault_id in (PUBLIC_VAULT_ID, self._vault.vault_id):
                        found.append(self._open(logged))
                assert not response.entries or head == response.chain_after, "the chain does not hold"
                newest = response.checkpoint or newest
        if not newest:
            return []
        signed = checkpoint.parse(newest)
        assert signed.origin == origin
        assert signed.size <= len(hashes)
        assert _root(hashes[: signed.size]) == signed.root, "the checkpoint's root is of other leaves"
        return [WholeLog(tuple(found))]

    def _open(self, logged: ledger_pb2.LoggedEntry) -> Logged:
        public = leaf.parse(logged.leaf_data)
        header = RecordHeader(len(logged.body), public.kind, logged.vault_epoch, logged.vault_id, public.commitment)
        vault = None if logged.vault_id == PUBLIC_VAULT_ID else self._vault
        opened = open_record(Record(header, logged.body), public.issuer, public.issuer_seq, vault)
        return Logged(logged.index, public, parse_entry(opened.canonical))


@asynccontextmanager
async def log_reader(mesh: RunningMesh, folder: Path, *, own_only: bool = False) -> AsyncIterator[LogReader]:
    """Join as a router that serves nobody, and open the vault of the mesh's tenant; `folder` takes its state.

    `own_only`: see `LogReader`.
    """
    receiver, tenant_id = ReceiverKey(), _tenant_id(mesh)
    async with join(_settings(mesh, folder), "router", {"hpke_key": receiver.public.hex()}) as member:
        channel = await member.peer("ledger", mesh.mesh["ledger_grpc"]).channel(_CALL_SECONDS)
        answer = await ledger_pb2_grpc.LedgerServiceStub(channel).OpenVault(
            ledger_pb2.OpenVaultRequest(tenant_id=tenant_id), timeout=_CALL_SECONDS
        )
        info = release_info(f"ledger-vault/{answer.vault_id.hex()}", answer.vault_epoch, member.spiffe_id)
        key = receiver.open(answer.sealed_key, info)
        yield LogReader(mesh, VaultKey(answer.vault_id, answer.vault_epoch, key, tenant_id), own_only=own_only)


def _tenant_id(mesh: RunningMesh) -> str:
    tenant = json.loads((mesh.state / "operators" / "tenant.json").read_bytes())
    return str(tenant["tenant_id"])


def _settings(mesh: RunningMesh, folder: Path) -> MemberSettings:
    """The router's own, under another name and with a folder of its own."""
    table = tomllib.loads((mesh.state / "config" / "router.toml").read_text())["member"]
    paths = {name: Path(table[name]) for name in ("guest_socket", "seed_policy")}
    known = {field.name for field in dataclasses.fields(MemberSettings)}
    assert table.keys() <= known
    return MemberSettings(**{**table, **paths, "instance": "reader", "state_dir": folder})


def _root(hashes: Sequence[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word: an oracle that shares nothing with the ledger."""
    if not hashes:
        return EMPTY_ROOT
    if len(hashes) == 1:
        return hashes[0]
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return node_hash(_root(hashes[:split]), _root(hashes[split:]))
