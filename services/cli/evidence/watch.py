"""It is responsible for `teemesh evidence watch`: every appraisal of a running mesh as it is made, a line each.

What a line says is the attestation service's word; its record can be fetched and repeated.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from rich.console import Console
from teemesh.attestation.v1 import attestation_pb2, attestation_pb2_grpc

from libs.errors import Code, MeshError
from libs.rpc.errors import remote_errors
from services.cli.mesh.status import Access
from services.cli.terminal.words import Json, Moment, plain

_ROLE = "attestation"
_SILENCE_SECONDS = 30.0
"""The service gives a sign of life every 10 s."""


class WatchEnded(MeshError):
    """The attestation service tells nothing any more."""

    code = Code.UNAVAILABLE
    reason = "WATCH_ENDED"


@dataclass(frozen=True, slots=True)
class Seen:
    """One appraisal, as the attestation service tells of it."""

    sequence: int
    record: bytes
    """Empty for what is not archived."""
    evidence: bytes
    role: str
    spiffe_id: str
    """Empty when somebody asked for it."""
    policy_version: int
    appraised_at: int
    """Unix seconds."""
    refusal: str
    """Empty when accepted."""

    def line(self) -> str:
        outcome = f"refused {self.refusal}" if self.refusal else "accepted"
        who = self.spiffe_id or "asked for"
        record = self.record.hex() or "not archived"
        return plain(f"{self.sequence} {Moment(self.appraised_at)} record {record} {self.role} ({who}) {outcome}")

    def to_json(self) -> dict[str, Json]:
        return {
            "sequence": self.sequence,
            "record": self.record.hex() or None,
            "evidence": self.evidence.hex(),
            "role": self.role,
            "spiffe_id": self.spiffe_id or None,
            "policy_version": self.policy_version,
            "appraised_at": self.appraised_at,
            "refusal": self.refusal or None,
        }


async def show_appraisals(
    access: Access,
    console: Console,
    *,
    after: int = 0,
    count: int | None = None,
    as_json: bool = False,
    silence_seconds: float = _SILENCE_SECONDS,
) -> None:
    """Print what follows the number `after` (0: from now on), `count` of it or for ever.

    Raises `WatchEnded` and what the service refuses with, for example `SEQUENCE_NOT_HELD`.
    """
    told = 0
    async with aclosing(_appraisals(access, after, silence_seconds)) as appraisals:
        async for seen in appraisals:
            console.out(json.dumps(seen.to_json()) if as_json else seen.line(), highlight=False)
            told += 1
            if told == count:
                return


async def _appraisals(access: Access, after: int, silence_seconds: float) -> AsyncGenerator[Seen, None]:
    async with access.channel(_ROLE) as channel:
        request = attestation_pb2.WatchAppraisalsRequest(after_sequence=after)
        call = attestation_pb2_grpc.AttestationServiceStub(channel).WatchAppraisals(request)
        try:
            while True:
                with remote_errors():
                    async with asyncio.timeout(silence_seconds):
                        response = await call.read()
                if not isinstance(response, attestation_pb2.WatchAppraisalsResponse):
                    raise WatchEnded("the attestation service ended the watch: watch again")
                if response.HasField("made"):
                    yield _seen(response.sequence, response.made)
        except TimeoutError as error:
            raise WatchEnded(f"the attestation service told nothing for {silence_seconds:g} s: watch again") from error
        finally:
            call.cancel()


def _seen(sequence: int, made: attestation_pb2.AppraisalMade) -> Seen:
    return Seen(
        sequence=sequence,
        record=made.record_digest,
        evidence=made.evidence_digest,
        role=made.role,
        spiffe_id=made.spiffe_id,
        policy_version=made.policy_version,
        appraised_at=made.appraised_at_ms // 1000,
        refusal=made.refusal,
    )
