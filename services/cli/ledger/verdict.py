"""It is responsible for showing what a reading of a log found: every finding, what was read, and one word for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from libs.audit.log.findings import Finding, Status
from libs.audit.log.notes import Key
from libs.audit.log.reading import Reading
from libs.audit.log.split_view import SplitView
from services.cli.terminal.checks import printable

_WORDS = {
    Status.SOUND: ("SOUND", "bold green"),
    Status.TORN: ("TORN", "bold yellow"),
    Status.DAMAGED: ("DAMAGED", "bold red"),
    Status.ROLLED_BACK: ("ROLLED BACK", "bold red"),
    Status.UNPROVEN: ("UNPROVEN", "bold red"),
    Status.DIVERGED: ("DIVERGED", "bold red"),
    Status.GAP: ("GAP", "bold red"),
}


def print_reading(reading: Reading, console: Console) -> None:
    """Print for people."""
    for finding in reading.findings.wrong:
        _print(console, _WORDS[finding.status], f"  {_place(finding)}: {finding.what}")
    for remark in reading.findings.remarks:
        _print(console, ("note", "dim"), f"  {remark}")
    for one, other in reading.contradictions:
        for head in (one, other or reading.newest):
            if head is not None:
                console.print(Text(printable(head.note.decode())), soft_wrap=True)
    signed = "no signed head holds" if reading.newest is None else f"signed up to {reading.newest.size}"
    worst = reading.findings.worst
    held = f"{reading.size} entries of {reading.issuers} issuers{_tenant(reading)}"
    _print(console, _WORDS[worst], f": {held}; {signed}; root {reading.root.hex()}")


def _tenant(reading: Reading) -> str:
    last = reading.tenant_entries
    if last is None:
        return ""
    if last == 0:
        return ", none of the tenant's"
    return f", the tenant's 1 to {last} " + ("without a gap" if reading.tenant_whole else "with gaps")


def members(reading: Reading) -> dict[str, Any]:
    """Return the same for machines."""
    newest = reading.newest
    return {
        "status": int(reading.findings.worst),
        "verdict": reading.findings.worst.name.lower(),
        "size": reading.size,
        "root": reading.root.hex(),
        "chain": reading.chain.hex() or None,
        "issuers": reading.issuers,
        "tenant_entries": reading.tenant_entries,
        "tenant_gap_free": reading.tenant_whole,
        "signed_size": None if newest is None else newest.size,
        "keys": [key.text() for key in reading.keys],
        "findings": [
            {"status": each.status.name.lower(), "file": each.file, "offset": each.offset, "what": each.what}
            for each in reading.findings.wrong
        ],
        "remarks": reading.findings.remarks,
        "contradictions": [
            [head.note.decode() for head in (one, other or newest) if head is not None]
            for one, other in reading.contradictions
        ],
    }


def print_split_view(
    view: SplitView, signers: Sequence[Key], console: Console, *, is_known: bool, as_json: bool
) -> None:
    """Print what a file of evidence proves, which was verified."""
    if as_json:
        value = {
            "status": int(Status.DIVERGED),
            "origin": view.smaller.origin,
            "sizes": [view.smaller.size, view.larger.size],
            "keys": [key.text() for key in signers],
            "keys_are_known": is_known,
            "notes": [view.smaller.note.decode(), view.larger.note.decode()],
        }
        print_json(value, console)
        return
    for head, key in zip((view.smaller, view.larger), signers, strict=True):
        console.print(Text(printable(head.note.decode())), soft_wrap=True)
        console.print(Text(f"signed by {printable(key.text())}\n"), soft_wrap=True)
    whose = "keys that were given" if is_known else "the keys above: compare them with the log's own"
    _print(console, _WORDS[Status.DIVERGED], f": two histories of {view.smaller.origin} are signed, by {whose}")


def print_json(value: dict[str, Any], console: Console) -> None:
    console.out(json.dumps(value, indent=2), highlight=False)


def _place(finding: Finding) -> str:
    return finding.file if finding.offset is None else f"{finding.file} at byte {finding.offset}"


def _print(console: Console, word: tuple[str, str], text: str) -> None:
    console.print(Text.assemble(word, printable(text)), soft_wrap=True)
