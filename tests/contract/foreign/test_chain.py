"""A client follows an answer from outside the mesh to its provider's own proof, and notices a link that was changed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from libs import jcs
from libs.aci.encoding import digest
from libs.aci.receipt import Receipt
from libs.aci.receipt_events import (
    RequestForwarded,
    ResponseReturned,
    ServedByForeign,
    UpstreamVerified,
)
from libs.aci.session import session_id
from libs.client.chain import cited_by, foreign_link, verify_chain
from libs.errors import MeshError
from libs.policy.document import Policy
from libs.transparency.leaf import Kind
from tests.fakes.foreign_routers import (
    HERE,
    NAME,
    THERE,
    OtherRouter,
    asked,
    last_receipt,
)
from tests.fakes.routers import Answer, RouterBench
from tests.fakes.sealed_prompts import Client


@dataclass(frozen=True, slots=True)
class Chain:
    """What a client has of an answer from outside the mesh."""

    policy: Policy
    receipt: Receipt
    session: bytes
    upstream: bytes | None

    def verify(self) -> str:
        link = foreign_link(self.receipt)
        assert isinstance(self.receipt.upstream, UpstreamVerified)
        assert link is not None
        return verify_chain(self.session, self.receipt, self.receipt.upstream, link, self.upstream, self.policy)

    def relinked(self, **changes: str) -> Chain:
        """The same with another link, its digest made to fit."""
        (link,) = [event for event in self.receipt.events if isinstance(event, ServedByForeign)]
        other = replace(link, **changes)
        assert other.receipt is not None
        other = replace(other, receipt_sha256=digest(other.receipt.encode()).removeprefix("sha256:"))
        return self.with_events({ServedByForeign: other})

    def with_events(self, others: Mapping[type[Any], Any]) -> Chain:
        events = tuple(others.get(type(event), event) for event in self.receipt.events)
        return replace(self, receipt=replace(self.receipt, events=events))


@pytest.fixture
async def chain(router: RouterBench, other: OtherRouter) -> Chain:
    await router.run(asked())
    return await _chain_of(router, last_receipt(router))


async def _chain_of(router: RouterBench, receipt: Receipt) -> Chain:
    link = foreign_link(receipt)
    assert isinstance(receipt.upstream, UpstreamVerified)
    assert link is not None
    cited = cited_by(link)
    assert cited is not None
    return Chain(
        router.member.policy.current,
        receipt,
        await router.foreign.session(receipt.upstream.session_id),
        await router.foreign.session(cited),
    )


async def test_a_client_follows_the_chain_through_both_hops(chain: Chain) -> None:
    assert f"foreign/{NAME}, compose" in chain.verify()


async def test_of_an_answer_that_was_encrypted_no_hash_in_clear_is_in_the_receipt(
    router: RouterBench, other: OtherRouter
) -> None:
    """A short answer can be guessed by its hash, which the provider's receipt has: the chain ends at the provider."""
    answer, proof = await _sealed(router, other)
    assert answer.started.sealed is not None
    receipt = last_receipt(router)
    assert foreign_link(receipt) == ServedByForeign(NAME, digest(proof).removeprefix("sha256:"))
    in_clear = digest(b"".join(other.bench.nodes[0].chunks))
    assert in_clear.encode() in proof
    assert in_clear not in json.dumps(router.ledger.of(Kind.RECEIPT)[-1])
    assert isinstance(receipt.upstream, UpstreamVerified)
    session = await router.foreign.session(receipt.upstream.session_id)
    sealed = Chain(router.member.policy.current, receipt, session, None)
    assert sealed.verify().startswith(f"foreign/{NAME}, compose")
    with pytest.raises(MeshError) as refusal:
        replace(sealed, policy=replace(sealed.policy, foreign_providers=())).verify()
    assert refusal.value.reason == "FOREIGN_NOT_LISTED"


async def test_the_chain_of_an_encrypted_answer_that_earlier_routers_recorded_ends_at_its_request(
    router: RouterBench, other: OtherRouter
) -> None:
    """Their receipts hold the provider's, whose answer nobody but the router knew in clear."""
    _, proof = await _sealed(router, other)
    earlier = ServedByForeign(NAME, digest(proof).removeprefix("sha256:"), proof.decode())
    receipt = last_receipt(router)
    events = tuple(earlier if isinstance(event, ServedByForeign) else event for event in receipt.events)
    chain = await _chain_of(router, replace(receipt, events=events))
    assert ", receipt " in chain.verify()
    with pytest.raises(MeshError) as refusal:
        chain.with_events({RequestForwarded: RequestForwarded(digest(b"other"))}).verify()
    assert refusal.value.reason == "FOREIGN_CHAIN_BROKEN"


async def _sealed(router: RouterBench, other: OtherRouter) -> tuple[Answer, bytes]:
    """Return an answer that was encrypted, and the provider's own receipt of it."""
    key = router.workload.newest.e2ee_keys[0]
    client = Client(key, key.suite.key(), HERE)
    answer = await router.run(client.sealed_chat(), sealing=client.headers())
    return answer, jcs.dumps(dict(other.bench.ledger.of(Kind.RECEIPT)[-1]))


def _stricter(chain: Chain, **changes: Any) -> Chain:
    (provider,) = chain.policy.foreign_providers
    return replace(chain, policy=replace(chain.policy, foreign_providers=(replace(provider, **changes),)))


def _edit_link(chain: Chain) -> Chain:
    link = foreign_link(chain.receipt)
    assert link is not None
    assert link.receipt is not None
    return chain.relinked(receipt=link.receipt.replace('"model":"', '"model":"not-'))


def _resealed(chain: Chain, change: Callable[[dict[str, Any]], object]) -> Chain:
    """The same with another session of the router's, which the receipt cites."""
    value = json.loads(chain.session)
    change(value)
    session = jcs.dumps(value)
    return replace(
        chain.with_events({UpstreamVerified: UpstreamVerified(True, THERE, session_id(session))}), session=session
    )


def _accepting_none(session: dict[str, Any]) -> None:
    evidence = json.loads(base64.b64decode(session["evidence"]["data"].partition(",")[2]))
    data = jcs.dumps({**evidence, "session_ids": []})
    encoded = base64.b64encode(data).decode()
    session["evidence"] = {"digest": digest(data), "data": f"data:application/json;base64,{encoded}"}


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (
            lambda chain: _resealed(chain, lambda session: session["channel_binding"][0].update(spki_sha256="00" * 32)),
            "CHANNEL_NOT_EVIDENCED",
        ),
        (lambda chain: _resealed(chain, _accepting_none), "SESSION_NOT_CITED"),
        (
            lambda chain: _resealed(chain, lambda session: session["claims"].pop("tee_attested")),
            "SESSION_CLAIMS_INSUFFICIENT",
        ),
        (lambda chain: replace(chain, policy=replace(chain.policy, foreign_providers=())), "FOREIGN_NOT_LISTED"),
        (lambda chain: _stricter(chain, origin="https://elsewhere"), "FOREIGN_NOT_LISTED"),
        (lambda chain: _stricter(chain, measurements=frozenset()), "MEASUREMENT_NOT_ALLOWED"),
        (lambda chain: _stricter(chain, session_claims=frozenset({"gpu_attested"})), "SESSION_CLAIMS_INSUFFICIENT"),
        (lambda chain: replace(chain, session=chain.upstream or b""), "SESSION_ID_MISMATCH"),
        (lambda chain: replace(chain, upstream=None), "SESSION_NOT_CITED"),
        (lambda chain: replace(chain, upstream=chain.session), "SESSION_ID_MISMATCH"),
        (_edit_link, "RECEIPT_SIGNATURE_INVALID"),
        (
            lambda chain: chain.with_events({RequestForwarded: RequestForwarded(digest(b"other"))}),
            "FOREIGN_CHAIN_BROKEN",
        ),
        (
            lambda chain: chain.with_events({ResponseReturned: ResponseReturned(digest(b"other"))}),
            "FOREIGN_CHAIN_BROKEN",
        ),
        (
            lambda chain: replace(chain, receipt=replace(chain.receipt, served_at=chain.receipt.served_at + 61)),
            "SERVED_AT_IMPLAUSIBLE",
        ),
        (
            lambda chain: chain.with_events({ServedByForeign: ServedByForeign(NAME, "00" * 32, "{}")}),
            "FOREIGN_CHAIN_BROKEN",
        ),
        (
            lambda chain: chain.with_events({ServedByForeign: ServedByForeign(NAME, "00" * 32)}),
            "FOREIGN_CHAIN_BROKEN",
        ),
    ],
    ids=[
        "other channel",
        "other sessions accepted",
        "no TEE",
        "not listed",
        "elsewhere",
        "code",
        "claims",
        "other session",
        "no upstream session",
        "other upstream session",
        "edited receipt",
        "other request",
        "other response",
        "other time",
        "other link",
        "proof left out of what was not encrypted",
    ],
)
async def test_a_chain_with_one_link_changed_is_refused(
    chain: Chain, break_it: Callable[[Chain], Chain], reason: str
) -> None:
    with pytest.raises(MeshError) as refusal:
        break_it(chain).verify()
    assert refusal.value.reason == reason
