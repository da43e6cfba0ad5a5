"""One hop ends in its time, whatever is still asked of the provider."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from libs.aci.endpoints import CHAT
from libs.aci.receipt_events import UpstreamFailed as Unverified
from libs.client.http import RouterHttp
from libs.client.pinning import client_context
from libs.policy.foreign import ForeignKind, ForeignProvider
from services.router.errors import UpstreamFailed
from services.router.prompt import parse
from services.router.routing.foreign.access import Credentials
from services.router.routing.foreign.hop import hop
from services.router.routing.foreign.openai import NoProof
from services.router.routing.foreign.place import Place
from services.router.routing.hop import Errand
from tests.fakes.ledgers import TENANT
from tests.fakes.nodes import BUFFERED
from tests.fakes.openai_service import openai_service
from tests.fakes.routers import PATIENCE_SECONDS, prompt

SECONDS = 1.0


class NeverProven(NoProof):
    """The provider answers whatever is asked for the proof, but never to the end."""

    async def conclude(self, http: RouterHttp, response: aiohttp.ClientResponse) -> None:
        await asyncio.Event().wait()


async def test_an_answer_whose_proof_does_not_come_fails_when_its_time_is_over() -> None:
    async with openai_service() as service, asyncio.timeout(PATIENCE_SECONDS):
        service.pieces = BUFFERED
        provider = ForeignProvider("slow", ForeignKind.OPENAI, service.origin, {"m": "m"})
        place = Place.of(provider, Credentials())
        errand = Errand(parse(prompt(model="m"), CHAT), CHAT, "req_1", TENANT.tenant_id, SECONDS, required=True)
        context = client_context(service.ca.pem, lambda spki_sha256: True)
        outcome = Unverified(False, "m", "never_verified", "foreign/slow")
        steps = hop(place, context, errand, prompt(model="m"), outcome, NeverProven(place))
        with pytest.raises(UpstreamFailed, match="broke off"):
            _ = [step async for step in steps]
