"""OpenAI's SDK, with what the README tells a user to give it, and nothing else."""

from __future__ import annotations

import ssl

from openai import DefaultHttpxClient, OpenAI

from tests.mesh.running import RunningMesh


def client_of(mesh: RunningMesh, *, timeout_seconds: float = 60) -> OpenAI:
    """A client of the mesh's router, which asks once. To be closed."""
    described = mesh.mesh
    return OpenAI(
        base_url=f"{described['router_url']}/v1",
        api_key=described["api_key"],
        http_client=DefaultHttpxClient(verify=ssl.create_default_context(cafile=described["router_ca"])),
        max_retries=0,
        timeout=timeout_seconds,
    )
