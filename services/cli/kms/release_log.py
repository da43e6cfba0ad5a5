"""It is responsible for `teemesh kms release-log`: every decision about keys that the ledger holds.

Each body is checked against the commitment in its leaf; whether the leaf is in the log, `teemesh ledger tail` tells.
"""

from __future__ import annotations

import json
from contextlib import aclosing
from pathlib import Path

from rich.console import Console
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.errors import Code, MeshError
from libs.events.records import SALT_SIZE, commit_to, parse_entry
from libs.transparency import leaf
from libs.transparency.leaf import Kind
from services.cli.ledger.command import responses
from services.cli.mesh.reading import MeshReader
from services.cli.mesh.service_access import read_service_access

_BATCH = 256
_SHOWN = ("epoch", "spiffe_id", "cause", "reason", "passed_over", "policy_version")
"""In this order, of a decision that has them; the rest is in the JSON form."""


class DecisionDamaged(MeshError):
    """The ledger shows another body than the one that its leaf commits to."""

    code = Code.DATA_LOSS
    reason = "DECISION_DAMAGED"


async def print_release_log(state: Path, console: Console, *, follow: bool, as_json: bool) -> None:
    """Print to the log's present end or, following, for ever. Raises `DecisionDamaged` and the ledger's refusals."""
    access = read_service_access(MeshReader(state / "mesh.json"), "ledger")
    request = ledger_pb2.TailRequest(from_index=0, follow=follow, max_batch=_BATCH, kinds=[int(Kind.KEY_DECISION)])
    async with (
        access.channel() as channel,
        aclosing(responses(ledger_pb2_grpc.LedgerServiceStub(channel), request)) as answers,
    ):
        async for answer in answers:
            for entry in answer.entries:
                console.out(_line(entry, as_json=as_json), highlight=False)


def _line(entry: ledger_pb2.LoggedEntry, *, as_json: bool) -> str:
    salt, canonical = entry.body[:SALT_SIZE], entry.body[SALT_SIZE:]
    if commit_to(salt, canonical) != leaf.parse(entry.leaf_data).commitment:
        raise DecisionDamaged(f"entry {entry.index} is not what its leaf commits to")
    body = parse_entry(canonical).body
    if as_json:
        return json.dumps({"index": entry.index, **body})
    said = [f"{member} {_plain(body[member])}" for member in _SHOWN if member in body]
    return f"{entry.index:>8}  {_plain(body.get('decision')):<9} {_plain(body.get('name'))}  {', '.join(said)}"


def _plain(value: object) -> str:
    """As JSON, so that no text of a caller's steers the reader's terminal."""
    text = json.dumps(value)
    return text[1:-1] if isinstance(value, str) else text
