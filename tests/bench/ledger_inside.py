"""Responsible for a ledger without services around it: what judges, writes and acknowledges is the ledger's own.

The vault's key and the mesh's root are drawn here; the one writer is a router with genuine evidence of a virtual TD.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.events.issuer import Sealed
from libs.events.vault import VaultKey, vault_epoch
from libs.transparency.leaf import Kind
from services.ledger.growth import Growth
from services.ledger.holding import Alone
from services.ledger.intake.acknowledging import Acknowledgements
from services.ledger.intake.admission import Admission, LogView
from services.ledger.intake.arrivals import Arrivals
from services.ledger.intake.committing import Committing
from services.ledger.intake.examining import ExaminerProcess
from services.ledger.intake.faults import Saying
from services.ledger.intake.logged_writers import LoggedWriters
from services.ledger.intake.rejections import Rejections
from services.ledger.intake.sequencer import Sequencer
from services.ledger.opening import logged_policies
from services.ledger.storage.store import LogStore
from services.ledger.vaults.erasures import Erasures
from tests.fakes.joined_mesh import JoinedMesh, KmsCore
from tests.unit.services.ledger.writers import LogWriter, describe_log

VAULT = VaultKey(b"\x09" * 16, vault_epoch(time.time()), b"\x02" * 32, "ef" * 16)
_KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
_INDEX_KEY = b"\x08" * 32


class _OneVault:
    def holds(self, vault_id: bytes, epoch: int) -> bool:
        return (vault_id, epoch) == (VAULT.vault_id, VAULT.epoch)

    async def key(self, vault_id: bytes, epoch: int) -> VaultKey:
        return VAULT


class _Speechless:
    """Nothing here is lost or refused, or what was measured is not what it is called."""

    def add(self, sayings: Sequence[Saying]) -> None:
        assert not sayings

    def wake(self) -> None:
        raise AssertionError("nothing was said")


@dataclass(frozen=True, slots=True)
class Inside:
    """The parts of a running ledger that a measurement drives."""

    store: LogStore
    rejections: Rejections
    sequencer: Sequencer
    acknowledgements: Acknowledgements
    growth: Growth
    arrivals: Arrivals
    committing: Committing
    thread: ThreadPoolExecutor


def _tag(vault_id: bytes, vault_seq: int) -> bytes:
    return sha256(vault_id + vault_seq.to_bytes(8, "big")).digest()[:16]


@contextmanager
def ledger_inside(folder: Path, mesh: JoinedMesh, kms: KmsCore, examiner: ExaminerProcess) -> Iterator[Inside]:
    """A new log in `folder`, and what writes it."""
    LogStore.create(folder, describe_log(mesh))
    with (
        LogStore(folder, sign=_KEY.sign, clock=time.time_ns, index_key=_INDEX_KEY) as store,
        closing(Rejections(folder)) as rejections,
        ThreadPoolExecutor(1, thread_name_prefix="commit") as thread,
    ):
        progress = store.index.progress
        view = LogView(
            store.index.has,
            lambda issuer: 0 if (known := progress(issuer)) is None else known.highest,
            LoggedWriters(store.index, store.reader).of,
        )
        policies = logged_policies(store.description, mesh.keeper("ledger"))
        sequencer = Sequencer(store, epoch=1, tag=_tag, clock=time.time_ns)
        growth = Growth(store.head.size, store.head.root())
        acknowledgements = Acknowledgements(store, rejections, _KEY, 1, lambda: growth.size)
        policies = logged_policies(store.description, mesh.keeper("ledger"))
        committing = Committing(
            admission=Admission(policies, view, kms.ca.certificate, Erasures()),
            sequencer=sequencer,
            rejections=rejections,
            acknowledgements=acknowledgements,
            owed=_Speechless(),
            issuer=b"\x77" * 32,
            growth=growth,
            holding=Alone(),
            thread=thread,
        )
        arrivals = Arrivals(_OneVault(), examiner)
        yield Inside(store, rejections, sequencer, acknowledgements, growth, arrivals, committing, thread)


def receipt(number: int) -> Mapping[str, Any]:
    """A body with as many members, hashes and bytes as a receipt has."""
    digests = [f"sha256:{sha256(f'{number} {each}'.encode()).hexdigest()}" for each in range(6)]
    events = [
        {"type": "request.received", "seq": 0, "body_hash": digests[0]},
        {"type": "upstream.verified", "seq": 1, "session_hash": digests[1], "result": "verified", "required": True},
        {"type": "request.forwarded", "seq": 2, "body_hash": digests[2]},
        {"type": "response.returned", "seq": 3, "body_hash": digests[3], "wire_hash": digests[4]},
    ]
    return {
        "api_version": "aci/1",
        "receipt_id": f"rcpt-{number:024x}",
        "model": "a-model/of-some-size",
        "workload_keyset_digest": digests[5],
        "endpoint": "/v1/chat/completions",
        "method": "POST",
        "served_at": 1_700_000_000 + number,
        "event_log": events,
    }


class Receipts:
    """One router's sealed receipts, without end."""

    def __init__(self, mesh: JoinedMesh, kms: KmsCore) -> None:
        self._writer = LogWriter(mesh, kms, "router")
        self._numbers = count()
        self.issuer = self._writer.issuer.id
        self.introduction = self._writer.batch(self._writer.introduce())

    def sealed(self, number: int) -> list[Sealed]:
        return [self._writer.seal(Kind.RECEIPT, receipt(next(self._numbers)), VAULT) for _ in range(number)]

    def messages(self, number: int, each: int) -> list[bytes]:
        """So many receipts, `each` of them under one signature."""
        sealed = self.sealed(number)
        return [self._writer.batch(*sealed[at : at + each]) for at in range(0, number, each)]
