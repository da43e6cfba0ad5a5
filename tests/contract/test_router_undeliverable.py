"""An answer that cannot be given: the packages that most clients use do not have it made again by themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anthropic
import openai
import pytest

from services.router.exchange.withholding import MAX_WITHHELD_BYTES
from tests.fakes.https_clients import KEY, Site, https_site
from tests.fakes.leases import MODEL
from tests.fakes.routers import PATIENCE_SECONDS

PIECE = b"x" * (1 << 20)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with https_site(tmp_path) as running:
        running.bench.nodes[0].chunks = [PIECE] * (MAX_WITHHELD_BYTES // len(PIECE) + 1)
        yield running


async def test_openais_package_asks_once(site: Site) -> None:
    async with openai.AsyncOpenAI(
        base_url=site.url("/v1"),
        api_key=KEY,
        http_client=openai.DefaultAsyncHttpxClient(verify=site.tls),
        max_retries=2,
        timeout=PATIENCE_SECONDS,
    ) as client:
        with pytest.raises(openai.InternalServerError) as refused:
            await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a"}])
    assert refused.value.status_code == 502
    assert len(site.bench.nodes[0].requests) == 1


async def test_anthropics_package_asks_once(site: Site) -> None:
    async with anthropic.AsyncAnthropic(
        base_url=site.url(""),
        api_key=KEY,
        http_client=anthropic.DefaultAsyncHttpxClient(verify=site.tls),
        max_retries=2,
        timeout=PATIENCE_SECONDS,
    ) as client:
        with pytest.raises(anthropic.InternalServerError) as refused:
            await client.messages.create(model=MODEL, max_tokens=9, messages=[{"role": "user", "content": "a"}])
    assert refused.value.status_code == 502
    assert len(site.bench.nodes[0].requests) == 1
