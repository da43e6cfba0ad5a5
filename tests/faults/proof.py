"""Each recorded answer's place in the log, proven with what the router hands out and with nothing that is only said."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libs import jcs
from libs.aci import receipt as receipts
from libs.client import commitment as commitments
from libs.client import ledger
from libs.client.commitment import Commitment, LedgerName
from libs.client.ledger import LedgerKeys
from libs.client.trust import Trust
from libs.identity.certificate import der_of
from libs.transparency import checkpoint
from tests.faults.load import Client, Completion

_SETTLE_SECONDS = 20.0
_AT_ONCE = 8


@dataclass(slots=True)
class Prover:
    """Verifies answers of one mesh. What a ledger's start claims is appraised once."""

    client: Client
    mesh: Mapping[str, Any]
    _keys: dict[LedgerName, LedgerKeys] = field(default_factory=dict)
    _evidence: dict[str, bytes] = field(default_factory=dict)

    async def prove_all(self, completions: Sequence[Completion]) -> list[str]:
        """Return one line for each answer that cannot be proven."""
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(completion: Completion) -> str | None:
            async with room:
                try:
                    await self.prove(completion)
                except AssertionError as error:
                    return f"{completion.receipt_id} (request {completion.number}): {error}"
                return None

        return [line for line in await asyncio.gather(*map(one, completions)) if line is not None]

    async def prove(self, completion: Completion) -> None:
        """Raise `AssertionError`, or what a verifier refuses with."""
        receipt = await self._fetch(f"/v1/aci/receipts/{completion.receipt_id}")
        found = commitments.parse(await self._fetch(f"/v1/teemesh/receipts/{completion.receipt_id}/commitment"))
        entry = ledger.verify_entry(found, receipt)
        assert entry.body["receipt_id"] == completion.receipt_id
        verify_hashes(entry.body, completion)
        acknowledger = await self._keys_of(found, found.acknowledged_by, int(completion.received_at))
        ledger.verify_durable(found, acknowledger)
        newest = ledger.verify_included(found, await self._keys_of(found, found.ledger, int(time.time())))
        assert newest.size > found.leaf_index
        assert newest.origin == checkpoint.parse(found.checkpoint).origin

    async def _fetch(self, path: str) -> bytes:
        deadline = time.monotonic() + _SETTLE_SECONDS
        while True:
            reply = await self.client.get(path)
            if reply.status == 200 and reply.ended:
                return reply.body
            assert time.monotonic() < deadline, f"{path}: {reply.trouble or reply.status} {reply.body.decode()[:200]}"
            await asyncio.sleep(0.5)

    async def _keys_of(self, found: Commitment, name: LedgerName, now: int) -> LedgerKeys:
        known = self._keys.get(name)
        if known is None:
            policy = self._trust().policy(time.time())
            document = await self._document(name.evidence_sha256)
            ca = commitments.ca_spki(found, self._mesh_ca())
            known = ledger.verify_ledger(name, found.mesh_ca, document, policy, ca, now)
            self._keys[name] = known
        return known

    async def _document(self, digest: str) -> bytes:
        if digest not in self._evidence:
            self._evidence[digest] = await self._fetch(f"/v1/teemesh/evidence/{digest}")
        return self._evidence[digest]

    def _mesh_ca(self) -> bytes:
        return der_of(Path(self.mesh["mesh_ca"]).read_bytes())

    def _trust(self) -> Trust:
        return Trust(
            signed_policy=Path(self.mesh["policy"]).read_bytes(),
            operator_keys=tuple(bytes.fromhex(key) for key in self.mesh["operator_public_keys"]),
            operator_threshold=self.mesh["operator_threshold"],
            trust_domain=self.mesh["trust_domain"],
        )


def verify_hashes(body: Mapping[str, Any], completion: Completion) -> None:
    """The receipt in an entry speaks of the very bytes that were sent and that came."""
    receipt = receipts.parse(jcs.dumps(dict(body)))
    assert receipt.received.body_hash == f"sha256:{completion.request_sha256}", "it is for another request"
    if completion.response_sha256 is not None:
        assert receipt.returned.body_hash == f"sha256:{completion.response_sha256}", "it is for another response"
