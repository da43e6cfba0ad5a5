"""What was appraised comes back, and is repeated by a process that reaches no network."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from teemesh.attestation.v1 import attestation_pb2 as pb
from teemesh.attestation.v1 import attestation_pb2_grpc as pb_grpc

from libs.audit.repetition import repeat
from libs.tee.archived import Bundle
from services.attestation.feed import Feed
from tests.fakes.joined_mesh import JoinedMesh
from tests.fakes.refusals import refusal, refused
from tests.fakes.running_attestation import PATIENCE_SECONDS, Attestation, appraise, bundle, challenge, ledger_evidence


async def test_archived_evidence_comes_back_by_its_digest(
    mesh: JoinedMesh, stub: pb_grpc.AttestationServiceStub
) -> None:
    document = ledger_evidence(mesh, await challenge(stub))
    verdict = json.loads((await appraise(stub, document, "ledger")).appraisal)
    request = pb.GetEvidenceRequest(digest=bytes.fromhex(verdict["evidence_digest"]))
    assert (await stub.GetEvidence(request, timeout=10)).document == document
    for digest in (b"", bytes(32)):
        assert await refusal(stub.GetEvidence(pb.GetEvidenceRequest(digest=digest), timeout=10)) == "EVIDENCE_UNKNOWN"
        assert await refusal(bundle(stub, digest)) == "APPRAISAL_UNKNOWN"


REPEAT = """
import sys

def refuse(event, arguments):
    if event.startswith("socket."):
        raise PermissionError(f"{event}: this process has no network")

sys.addaudithook(refuse)
import socket
try:
    socket.socket()
except PermissionError:
    pass
else:
    sys.exit("the hook is not at work")

from libs.audit.repetition import repeat
sys.stdout.buffer.write(repeat(sys.stdin.buffer.read()))
"""


CUT_OFF = """
import socket, sys
from libs.audit.repetition import repeat

data = sys.stdin.buffer.read()
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
except OSError:
    sys.stdout.buffer.write(repeat(data))
else:
    sys.exit("the network is there")
"""


def offline(command: Sequence[str], data: bytes) -> bytes:
    # Another hash seed than this process's: what depends on the order of a set would show.
    environment = {
        "PYTHONPATH": f"{Path.cwd()}:{Path.cwd() / 'gen'}",
        "PYTHONHASHSEED": "4711",
        "PATH": "/usr/bin:/bin",
    }
    finished = subprocess.run(
        command, input=data, capture_output=True, check=False, timeout=PATIENCE_SECONDS, env=environment
    )
    assert finished.returncode == 0, finished.stderr.decode()
    return finished.stdout


async def archived_bundles(mesh: JoinedMesh, stub: pb_grpc.AttestationServiceStub, feed: Feed) -> list[bytes]:
    """One that was accepted and one that was refused, from the archive of a running service."""
    events = feed.follow(0)
    told = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    accepted = await appraise(stub, ledger_evidence(mesh, await challenge(stub)), "ledger")
    await told
    await refused(appraise(stub, ledger_evidence(mesh, await challenge(stub)), "kms"))
    made = (await anext(events)).made
    assert made is not None
    return [await bundle(stub, accepted.record_digest), await bundle(stub, made.record_digest)]


async def test_a_past_appraisal_is_repeated_by_a_process_that_may_open_no_socket(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    for data in await archived_bundles(mesh, stub, attestation.feed):
        record = Bundle.decode(data).record.encode()
        assert repeat(data) == record
        assert await asyncio.to_thread(offline, [sys.executable, "-c", REPEAT], data) == record


def namespaces_are_permitted() -> bool:
    try:
        return subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not namespaces_are_permitted(), reason="this machine permits no network namespace (unshare -rn)")
async def test_a_past_appraisal_is_repeated_with_the_network_cut_off(
    mesh: JoinedMesh, attestation: Attestation, stub: pb_grpc.AttestationServiceStub
) -> None:
    host, port = attestation.target.split(":")
    for data in await archived_bundles(mesh, stub, attestation.feed):
        command = ["unshare", "-rn", sys.executable, "-c", CUT_OFF, host, port]
        assert await asyncio.to_thread(offline, command, data) == Bundle.decode(data).record.encode()
