"""What the log must say once a KMS that was killed over and over runs undisturbed: everything, once and for ever."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.events.records import Record, RecordHeader, open_record, parse_entry
from libs.rpc.errors import remote_errors
from libs.transparency import leaf
from libs.transparency.leaf import Kind
from services.kms.pages import Pages
from tests.fakes.joined_mesh import KmsCore
from tests.faults.kms_clients import NAMES, Promised, operator_channel
from tests.faults.log import Logged, WholeLog


async def read_log(core: KmsCore, target: str) -> WholeLog:
    """Read a log without tenants from its first leaf to its end, as an operator."""
    found: list[Logged] = []
    async with operator_channel(core, "ledger", target) as channel:
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        with remote_errors():
            async for response in stub.Tail(ledger_pb2.TailRequest(from_index=0, max_batch=256), timeout=60):
                found.extend(_open(logged) for logged in response.entries)
    return WholeLog(tuple(found))


def _open(logged: ledger_pb2.LoggedEntry) -> Logged:
    public = leaf.parse(logged.leaf_data)
    header = RecordHeader(len(logged.body), public.kind, logged.vault_epoch, logged.vault_id, public.commitment)
    opened = open_record(Record(header, logged.body), public.issuer, public.issuer_seq, None)
    return Logged(logged.index, public, parse_entry(opened.canonical))


def missing(log: WholeLog, promised: Promised, pages: Pages, joins: int) -> list[str]:
    """What took effect, or was promised, and is not in the log (yet)."""
    decisions = [logged.entry.body for logged in log.of(Kind.KEY_DECISION)]
    found = [f"the log lacks epochs {lost} of {name}" for name, lost in _lost_epochs(decisions, pages).items()]
    released = Counter((body["name"], body["epoch"]) for body in decisions if body["decision"] == "released")
    if unlogged := promised.released - released:
        found.append(f"{unlogged.total()} releases are not in the log")
    certified = {logged.entry.body["spki_sha256"] for logged in log.of(Kind.ADMISSION)}
    if strangers := promised.certified - certified:
        found.append(f"{len(strangers)} certificates are not in the log")
    joined = sum(1 for body in decisions if body["decision"] == "joined")
    if joined < joins:
        found.append(f"the root was given {joins} times, and the log has {joined}")
    return [*found, *log.holes()]


def contradictions(log: WholeLog, promised: Promised, pages: Pages) -> list[str]:
    """What no log may say, however long one waits."""
    found = []
    changes: dict[tuple[str, int], set[tuple[tuple[str, Any], ...]]] = defaultdict(set)
    for logged in log.of(Kind.KEY_DECISION):
        if logged.entry.body["decision"] == "rotated":
            body = logged.entry.body
            changes[body["name"], body["epoch"]].add(tuple(sorted(body.items())))
    found += [f"{name} {epoch} began {len(said)} times" for (name, epoch), said in changes.items() if len(said) > 1]
    for name in NAMES:
        newest = pages.keys[name].epoch if name in pages.keys else 1
        if newest < promised.epochs[name]:
            found.append(f"{name} went back to {newest}, and {promised.epochs[name]} was acknowledged")
        if beyond := [epoch for one, epoch in changes if one == name and epoch > newest]:
            found.append(f"the log has epochs {beyond} of {name}, the KMS only {newest}")
    try:
        log.verify_sequences()
    except AssertionError as error:
        found.append(str(error))
    return found


def _lost_epochs(decisions: list[Mapping[str, Any]], pages: Pages) -> dict[str, list[int]]:
    logged: dict[str, set[int]] = defaultdict(set)
    for body in decisions:
        if body["decision"] == "rotated":
            logged[body["name"]].add(body["epoch"])
    return {
        name: lost
        for name, page in pages.keys.items()
        if (lost := sorted(set(range(2, page.epoch + 1)) - logged[name]))
    }
