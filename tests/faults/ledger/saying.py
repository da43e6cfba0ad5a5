"""I6: what a log's folder has to say of others' faults, wherever it lies.

Once the frame is durable that steps over a fault, what is said of it is in `owed.log` or in the outbox, and nowhere is
a part of it.
"""

from __future__ import annotations

from pathlib import Path

from libs import jcs
from libs.audit.log.findings import Findings
from libs.audit.log.records import read_records
from libs.events.batches import parse_batch
from libs.events.journal import scan
from libs.events.outbox import MAGIC
from libs.events.outbox_items import Stored, decode_items
from libs.events.records import SALT_SIZE, parse_entry
from libs.transparency.leaf import Kind
from services.ledger.intake.faults import Saying
from services.ledger.intake.owed import NAME, Owed
from tests.faults.ledger.commits import OUTBOX
from tests.faults.ledger.plan import Plan


def unsaid(folder: Path, plan: Plan, high: int) -> list[str]:
    """What a log that has read its stream up to `high` ought to say and does not, and what it says of nobody's fault.

    Raises what opening `owed.log` and the outbox raises.
    """
    found = {_canonical(each) for each in (*owed_in(folder), *stored_in(folder / OUTBOX))}
    due = {_canonical(fault.said): fault.sequence for fault in plan.faults}
    lost = [said for said, sequence in due.items() if sequence <= high and said not in found]
    return [
        *(f"I6: nowhere is it said, up to {high}: {said.decode()}" for said in lost),
        *(f"I6: nobody's fault is said: {said.decode()}" for said in found - due.keys()),
    ]


def owed_in(folder: Path) -> list[Saying]:
    """All that is owed, as a start finds it, and without saying any of it."""
    Owed(folder).close()
    with (folder / NAME).open("rb") as stored:
        read = list(read_records(stored, b"TMOW", NAME, Findings()))
    records = [(at, jcs.loads_object(record)) for at, record in read]
    said = max((record["told"] for _, record in records if "told" in record), default=0)
    return [Saying(Kind(each["kind"]), each["body"]) for at, each in records if at >= said and "told" not in each]


def stored_in(folder: Path) -> list[Saying]:
    """What an outbox holds that the ledger says of others."""
    sayings = []
    for path in sorted(folder.glob("*.outbox")):
        for payload in scan(MAGIC, path.read_bytes()).payloads:
            batches = [parse_batch(item.message) for item in decode_items(payload) if isinstance(item, Stored)]
            entries = [parse_entry(record.body[SALT_SIZE:]) for batch in batches for record in batch.records]
            sayings += [Saying(each.kind, each.body) for each in entries if each.kind is not Kind.KEYSET]
    return sayings


def _canonical(saying: Saying) -> bytes:
    return jcs.dumps({"kind": saying.kind, "body": dict(saying.body)})
