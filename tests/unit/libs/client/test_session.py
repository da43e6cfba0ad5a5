"""A client against a router over real TLS: what is refused before a prompt leaves, and what an honest one passes."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.client.exchange import chat_body
from libs.client.http import RouterRefused, RouterUrlInvalid, TlsKeyNotPinned
from libs.client.reading import AnswerBrokenOff
from libs.client.record import AnswerNotRead, Record
from libs.client.sealing import AnswerNotSealed
from libs.client.session import Patience, RouterSession, open_session
from libs.client.verified import KeysetChanged
from libs.errors import MeshError
from libs.transparency.cosignature import cosigner_key
from libs.transparency.quorum import Quorum
from tests.fakes.attested_mesh import MODEL, AttestedMesh, Ca
from tests.fakes.https_router import API_KEY, RouterTwin, server_context, serving

from .test_checks import WITNESS_NAME, cosigned

WITNESS = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
QUICK = Patience(settle=5.0, between=0.01, silence=10.0, total=30.0)
PROMPT = [{"role": "user", "content": "say hello"}]


async def _ask(session: RouterSession, *, stream: bool = True) -> tuple[str, Any]:
    async with session.chat(chat_body(MODEL, PROMPT, stream=stream)) as answer:
        text = "".join([piece async for piece in answer])
    return text, answer.exchange


@pytest.mark.parametrize("stream", [True, False])
async def test_an_honest_router_passes_every_check(router: RouterTwin, mesh: AttestedMesh, stream: bool) -> None:
    async with open_session(router.url, API_KEY, mesh.trust(), patience=QUICK) as session:
        text, exchange = await _ask(session, stream=stream)
        checks = await session.verify(exchange)

    assert text == "Hello, world"
    assert [(check.number, check.reason) for check in checks] == [(number, None) for number in range(1, 13)]
    assert "DEVELOPMENT ROOT devtee" in checks[0].detail
    assert json.loads(router.prompts[0])["provider"] == {"aci_verified": True}


async def test_the_api_key_is_not_sent_before_the_router_is_verified(router: RouterTwin, mesh: AttestedMesh) -> None:
    async with open_session(router.url, API_KEY, mesh.trust(), patience=QUICK) as session:
        await _ask(session)

    assert router.seen_keys == [None, f"Bearer {API_KEY}"]


async def test_a_commitment_that_is_on_its_way_is_waited_for(router: RouterTwin, mesh: AttestedMesh) -> None:
    router.not_yet = 3
    async with open_session(router.url, API_KEY, mesh.trust(), patience=QUICK) as session:
        _, exchange = await _ask(session)
        checks = await session.verify(exchange)

    assert all(check.passed for check in checks)


async def test_a_commitment_that_never_comes_fails_every_check_about_the_ledger(
    router: RouterTwin, mesh: AttestedMesh
) -> None:
    router.not_yet = 1000
    async with open_session(router.url, API_KEY, mesh.trust(), patience=replace(QUICK, settle=0.05)) as session:
        _, exchange = await _ask(session)
        checks = await session.verify(exchange)

    assert [check.number for check in checks if not check.passed] == [7, 8, 9, 10, 11, 12]
    assert {check.reason for check in checks[7:10]} == {"ROUTER_REFUSED"}


@pytest.mark.parametrize(("settle", "failed"), [(20.0, []), (0.05, [12])])
async def test_cosignatures_that_are_demanded_are_waited_for_and_no_longer_than_patience(
    router: RouterTwin, mesh: AttestedMesh, settle: float, failed: list[int]
) -> None:
    asked: list[bytes] = []

    def cosigned_at_last(commitment: bytes) -> bytes:
        asked.append(commitment)
        return cosigned(commitment, WITNESS) if len(asked) > 20 else commitment

    router.lies["commitment"] = cosigned_at_last
    demanding = replace(mesh.trust(), quorum=Quorum((cosigner_key(WITNESS_NAME, WITNESS),), 1))
    async with open_session(router.url, API_KEY, demanding, patience=replace(QUICK, settle=settle)) as session:
        _, exchange = await _ask(session)
        checks = await session.verify(exchange)

    assert [check.number for check in checks if not check.passed] == failed
    assert checks[11].reason == ("QUORUM_NOT_REACHED" if failed else None)
    assert (f"cosigned by {WITNESS_NAME}" in checks[11].detail) == (not failed)


def _other_nonce(mesh: AttestedMesh) -> Callable[[bytes], bytes]:
    return lambda _: mesh.report("00" * 32)


def _unbound_keyset(mesh: AttestedMesh) -> Callable[[bytes], bytes]:
    """Another keyset beside a quote that does not bind it."""

    def lie(report: bytes) -> bytes:
        value = jcs.loads_object(report)
        other = mesh.keyset_of(ec.generate_private_key(ec.SECP256R1()))
        value["attestation"]["workload_keyset"] = other.document()
        value["workload_keyset_digest"] = other.digest
        return jcs.dumps(value)

    return lie


def _without_custody_of(role: str) -> Callable[[AttestedMesh], Callable[[bytes], bytes]]:
    def lie(report: bytes) -> bytes:
        value = jcs.loads(report)
        custody = value["attestation"]["evidence"]["key_custody"]
        custody["keys"] = [key for key in custody["keys"] if key["role"] != role]
        return jcs.dumps(value)

    return lambda _: lie


def _relabelled(path: tuple[str, ...], value: object) -> Callable[[AttestedMesh], Callable[[bytes], bytes]]:
    def of(mesh: AttestedMesh) -> Callable[[bytes], bytes]:
        del mesh

        def lie(report: bytes) -> bytes:
            document = jcs.loads_object(report)
            holder = document["attestation"]
            for name in path[:-1]:
                holder = holder[name]
            holder[path[-1]] = value
            return jcs.dumps(document)

        return lie

    return of


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (_other_nonce, "REPORT_DATA_MISMATCH"),
        (_unbound_keyset, "REPORT_DATA_MISMATCH"),
        (_relabelled(("evidence", "app_compose"), "{}"), "COMPOSE_HASH_MISMATCH"),
        (_relabelled(("evidence", "quote_report_data"), "00" * 64), "REPORT_SLOT_MISMATCH"),
        (_relabelled(("evidence", "quote"), "0400"), "QUOTE_MALFORMED"),
        (_relabelled(("evidence", "key_custody"), {"provider": "dstack-kms", "keys": []}), "CUSTODY_NOT_STATED"),
        (_relabelled(("evidence", "key_custody"), {"provider": "in-tee", "keys": []}), "CUSTODY_NOT_STATED"),
        (_without_custody_of("receipt"), "CUSTODY_NOT_STATED"),
        (_without_custody_of("e2ee"), "CUSTODY_NOT_STATED"),
        (_without_custody_of("tls"), "CUSTODY_NOT_STATED"),
        (_relabelled(("tee_type",), "sev_snp"), "REPORT_EVIDENCE_MALFORMED"),
    ],
)
async def test_a_false_report_is_refused_before_anything_is_sent(
    router: RouterTwin,
    mesh: AttestedMesh,
    lie: Callable[[AttestedMesh], Callable[[bytes], bytes]],
    reason: str,
) -> None:
    router.lies["report"] = lie(mesh)
    with pytest.raises(MeshError) as refused:
        async with open_session(router.url, API_KEY, mesh.trust(), patience=QUICK):
            pass

    assert refused.value.reason == reason
    assert router.prompts == []
    assert router.seen_keys == [None]


async def test_a_genuine_report_over_another_tls_key_is_refused(mesh: AttestedMesh, tmp_path: Path) -> None:
    relay = RouterTwin(mesh)
    async with serving(relay, tmp_path, ec.generate_private_key(ec.SECP256R1())):
        with pytest.raises(MeshError) as refused:
            async with open_session(relay.url, API_KEY, mesh.trust(), patience=QUICK):
                pass

    assert refused.value.reason == "TLS_KEY_NOT_ATTESTED"
    assert relay.seen_keys == [None]


async def test_a_policy_without_the_measurement_refuses_the_router(router: RouterTwin, mesh: AttestedMesh) -> None:
    draft = mesh.policy_draft()
    draft["roles"]["router"]["measurements"] = draft["roles"]["node"]["measurements"]
    with pytest.raises(MeshError) as refused:
        async with open_session(router.url, API_KEY, mesh.trust(draft), patience=QUICK):
            pass

    assert refused.value.reason == "MEASUREMENT_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"operator_threshold": 3}, "POLICY_SIGNATURES_INSUFFICIENT"),
        ({"trust_domain": "mesh.other"}, "POLICY_OF_ANOTHER_MESH"),
        ({"ca_pem": Ca.create(1_700_000_000).pem}, "ROUTER_UNREACHABLE"),
    ],
)
async def test_other_anchors_refuse(
    router: RouterTwin, mesh: AttestedMesh, change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(MeshError) as refused:
        async with open_session(router.url, API_KEY, replace(mesh.trust(), **change), patience=QUICK):
            pass

    assert refused.value.reason == reason


async def test_another_key_under_the_same_ca_gets_no_byte_of_the_request(mesh: AttestedMesh, tmp_path: Path) -> None:
    twin = RouterTwin(mesh)
    async with AsyncExitStack() as stack:
        async with serving(twin, tmp_path):
            session = await stack.enter_async_context(open_session(twin.url, API_KEY, mesh.trust(), patience=QUICK))
        received, kept = list[bytes](), Record(keep=True)

        async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                received.append(await reader.read(1))
            except ConnectionError:
                pass
            finally:
                writer.close()

        context = server_context(mesh, tmp_path, ec.generate_private_key(ec.SECP256R1()))
        impostor = await asyncio.start_server(record, "127.0.0.1", twin.port, ssl=context)
        async with impostor:
            with pytest.raises(TlsKeyNotPinned):
                async with session.chat(chat_body(MODEL, PROMPT), record=kept):
                    pass

    assert b"".join(received) == b""
    assert twin.prompts == []
    assert not kept.is_sent


ANOTHER = "sha256:" + "00" * 32


async def test_a_router_that_names_another_keyset_is_verified_before_it_gets_more(
    router: RouterTwin, mesh: AttestedMesh
) -> None:
    router.extra_headers["X-ACI-Keyset-Digest"] = ANOTHER
    async with open_session(router.url, API_KEY, mesh.trust(), patience=QUICK) as session:
        await _ask(session)
        router.lies["report"] = _other_nonce(mesh)
        with pytest.raises(MeshError) as refused:
            await _ask(session)
        assert refused.value.reason == "REPORT_DATA_MISMATCH"
        assert len(router.prompts) == 1
        del router.lies["report"]
        await _ask(session)

    assert len(router.prompts) == 2


async def test_a_router_that_is_another_process_now_is_for_another_session(mesh: AttestedMesh, tmp_path: Path) -> None:
    """Its report is genuine, and so is its TLS key; but what was observed before ended elsewhere."""
    first, second = RouterTwin(mesh), RouterTwin(mesh)
    first.extra_headers["X-ACI-Keyset-Digest"] = ANOTHER
    key = ec.generate_private_key(ec.SECP256R1())
    second.keyset = mesh.keyset_of(key)
    async with AsyncExitStack() as stack:
        async with serving(first, tmp_path):
            session = await stack.enter_async_context(open_session(first.url, API_KEY, mesh.trust(), patience=QUICK))
            await _ask(session)
        second.port = first.port
        async with serving(second, tmp_path, key):
            with pytest.raises(KeysetChanged):
                await _ask(session)

    assert second.prompts == []
    assert second.seen_keys == [None]


async def test_a_stream_cut_short_is_said_and_still_hashed(router: RouterTwin, mesh: AttestedMesh) -> None:
    router.lies["response"] = lambda body: body.removesuffix(b"data: [DONE]\n\n")
    async with (
        open_session(router.url, API_KEY, mesh.trust(), patience=QUICK) as session,
        session.chat(chat_body(MODEL, PROMPT)) as answer,
    ):
        with pytest.raises(AnswerNotRead):
            _ = answer.exchange
        with pytest.raises(AnswerBrokenOff):
            _ = [piece async for piece in answer]
        checks = await session.verify(answer.exchange)

    assert [check.reason for check in checks if not check.passed] == ["RESPONSE_NOT_RECEIPTED"]


async def test_an_error_inside_the_stream_is_raised_after_all_was_hashed(
    router: RouterTwin, mesh: AttestedMesh
) -> None:
    failed = b'data: {"error":{"message":"engine lost","type":"upstream_error"}}\n\ndata: [DONE]\n\n'
    router.lies["response"] = lambda body: failed
    async with (
        open_session(router.url, API_KEY, mesh.trust(), patience=QUICK) as session,
        session.chat(chat_body(MODEL, PROMPT)) as answer,
    ):
        with pytest.raises(AnswerBrokenOff, match="engine lost"):
            _ = [piece async for piece in answer]

    assert answer.exchange.response_hash == "sha256:" + hashlib.sha256(failed).hexdigest()


async def test_a_refusal_keeps_its_type_status_and_receipt(router: RouterTwin, mesh: AttestedMesh) -> None:
    router.refusing = True
    async with open_session(router.url, API_KEY, mesh.trust(), patience=QUICK) as session:
        with pytest.raises(RouterRefused) as refused:
            await _ask(session)

    error = refused.value
    assert (error.status, error.type, error.receipt_id) == (503, "upstream_verification_failed", "rcpt-refusal")


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "https://user@127.0.0.1", "https://127.0.0.1/path", "https://127.0.0.1:x", "router"]
)
async def test_only_a_plain_https_origin_is_a_router(mesh: AttestedMesh, url: str) -> None:
    with pytest.raises(RouterUrlInvalid):
        async with open_session(url, API_KEY, mesh.trust()):
            pass


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_in_clear_to_an_encrypted_prompt_is_not_shown_and_can_be_verified_all_the_same(
    router: RouterTwin, mesh: AttestedMesh, stream: bool
) -> None:
    async with open_session(router.url, API_KEY, mesh.trust(), patience=QUICK) as session:
        async with session.chat(chat_body(MODEL, PROMPT, stream=stream), sealed=True) as answer:
            pieces = aiter(answer)
            with pytest.raises(AnswerNotSealed):
                await anext(pieces)
        assert answer.exchange.request == chat_body(MODEL, PROMPT, stream=stream)
    assert b"say hello" not in router.prompts[0]
