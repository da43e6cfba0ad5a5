"""One mesh for this folder's tests, and the usual ways to speak to it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest
from anthropic import Anthropic
from anthropic import DefaultHttpxClient as AnthropicHttpxClient
from openai import OpenAI

from tests.mesh.https import Https
from tests.mesh.openai_sdk import client_of
from tests.mesh.running import RunningMesh, running_mesh, short_folder


@pytest.fixture(scope="package")
def mesh() -> Iterator[RunningMesh]:
    with short_folder() as folder, running_mesh(folder) as running:
        yield running


@pytest.fixture
def openai_client(mesh: RunningMesh) -> Iterator[OpenAI]:
    with client_of(mesh) as client:
        yield client


@pytest.fixture
def anthropic_client(mesh: RunningMesh) -> Iterator[Anthropic]:
    """Anthropic's SDK, given the same."""
    described = mesh.mesh
    context = ssl.create_default_context(cafile=described["router_ca"])
    with Anthropic(
        base_url=described["router_url"],
        api_key=described["api_key"],
        http_client=AnthropicHttpxClient(verify=context),
        max_retries=0,
        timeout=60,
    ) as client:
        yield client


@pytest.fixture
def https(mesh: RunningMesh) -> Https:
    """Plain requests to the router, for what no SDK would send."""
    described = mesh.mesh
    return Https(described["router_url"], described["router_ca"], described["api_key"])
