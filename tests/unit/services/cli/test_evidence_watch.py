"""`teemesh evidence watch` and `fetch --record` at the attestation service's own archive, over real mutual TLS."""

from __future__ import annotations

import argparse
import io
import json
from typing import Any

import pytest
from rich.console import Console

from libs.audit.repetition import repeat
from libs.tee.archived import Bundle
from services.cli.evidence import command as evidence
from services.cli.evidence.fetch import fetch_appraisal
from services.cli.evidence.watch import Seen, WatchEnded, show_appraisals
from services.cli.mesh.status import Access
from services.cli.terminal.inputs import InputUnreadable
from tests.fakes.joined_fixtures import kms, machine, mesh
from tests.fakes.joined_mesh import JoinedMesh, KmsCore
from tests.fakes.refusals import refusal
from tests.unit.services.cli.attesting import FIRST, access, attesting
from tests.unit.services.cli.test_evidence_fetch import served, shelf

__all__ = ["kms", "machine", "mesh"]

NODE = "spiffe://mesh.test/node/1"


async def told(access: Access, **options: Any) -> list[str]:
    text = io.StringIO()
    await show_appraisals(access, Console(file=text, width=80), **options)
    return text.getvalue().splitlines()


async def test_each_appraisal_is_one_line_that_names_its_record(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with attesting(mesh, kms) as service:
        operator = access(kms, attestation=service.target)
        records = [await service.appraise(), await service.appraise("node", NODE)]
        first, second = await told(operator, after=FIRST, count=2)
        assert first.split()[0] == str(FIRST + 1)
        assert first.endswith(f"record {records[0].hex()} ledger (asked for) accepted")
        assert second.split()[0] == str(FIRST + 2)
        assert second.endswith(f"record {records[1].hex()} node ({NODE}) refused MEASUREMENT_NOT_ALLOWED")
        assert await told(operator, after=FIRST + 1, count=1) == [second]


async def test_json_is_one_object_a_line(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with attesting(mesh, kms) as service:
        record = await service.appraise("node", NODE)
        (line,) = await told(access(kms, attestation=service.target), after=FIRST, count=1, as_json=True)
        evidence = Bundle.decode(await fetch_appraisal(access(kms, attestation=service.target), record)).record.evidence
    assert json.loads(line) == {
        "sequence": FIRST + 1,
        "record": record.hex(),
        "evidence": evidence.hex(),
        "role": "node",
        "spiffe_id": NODE,
        "policy_version": 1,
        "appraised_at": service.question.now,
        "refusal": "MEASUREMENT_NOT_ALLOWED",
    }


def test_what_was_not_archived_is_said_and_its_words_cannot_forge_a_line() -> None:
    seen = Seen(1, b"", b"\x01" * 32, "node\n2 forged", "", 1, 0, "TD_DEBUG\x1b[2J")
    assert "record not archived" in seen.line()
    assert "\n" not in seen.line()
    assert "\x1b" not in seen.line()
    assert (seen.to_json()["record"], seen.to_json()["spiffe_id"]) == (None, None)


async def test_what_is_no_longer_held_is_refused_by_its_reason(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with attesting(mesh, kms, kept=1) as service:
        await service.appraise()
        await service.appraise()
        for after in (FIRST, FIRST + 3):
            watch = told(access(kms, attestation=service.target), after=after, count=1)
            assert await refusal(watch) == "SEQUENCE_NOT_HELD"


async def test_a_service_that_tells_nothing_or_is_away_is_said(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with attesting(mesh, kms) as service:
        with pytest.raises(WatchEnded):
            await told(access(kms, attestation=service.target), silence_seconds=0.3)
    assert await refusal(told(access(kms, attestation="127.0.0.1:9"))) == "UNAVAILABLE"
    with pytest.raises(InputUnreadable, match="teemesh up"):
        await told(access(kms))


async def test_an_appraisal_is_fetched_by_its_record_and_repeats(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with attesting(mesh, kms) as service:
        operator = access(kms, attestation=service.target)
        for role in ("ledger", "node"):
            record = await service.appraise(role)
            bundle = await fetch_appraisal(operator, record)
            assert Bundle.decode(bundle).evidence == service.document
            assert repeat(bundle) == Bundle.decode(bundle).record.encode()
        assert await refusal(fetch_appraisal(operator, bytes(32))) == "APPRAISAL_UNKNOWN"


async def test_nothing_but_the_appraisal_of_that_record_is_taken(mesh: JoinedMesh, kms: KmsCore) -> None:
    async with attesting(mesh, kms) as service:
        operator = access(kms, attestation=service.target)
        other = await fetch_appraisal(operator, await service.appraise())
    for held, reason in ((other, "APPRAISAL_MISMATCH"), (b"{}", "ARCHIVE_MALFORMED")):
        async with served(mesh, kms, "attestation", shelf(None, bundle=held)) as (_, target):
            assert await refusal(fetch_appraisal(access(kms, attestation=target), bytes(32))) == reason


@pytest.mark.parametrize(
    "arguments",
    [
        ("watch", "--count", "0"),
        ("watch", "--count", "-1"),
        ("watch", "--after", str(2**64)),
        ("fetch", "--record", "00", "--out", "f"),
        ("fetch", "--record", "00" * 32, "--role", "node", "--out", "f"),
    ],
)
def test_numbers_and_digests_that_say_nothing_are_refused(arguments: tuple[str, ...]) -> None:
    parser = argparse.ArgumentParser()
    evidence.add_parser(parser.add_subparsers())
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["evidence", *arguments])
    assert ended.value.code == 2
