"""It is responsible for knowing when a mesh serves its model: the router cites a session with a node that has it.

A service that is ready has done its own part; that they have found each other shows only here.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import aiohttp

from libs.errors import Code, MeshError
from services.cli.mesh.patience import patiently

_TIMEOUT_SECONDS = 5.0


class RouterNotServing(MeshError):
    """The router does not answer, or has no node for the model."""

    code = Code.UNAVAILABLE
    reason = "ROUTER_NOT_SERVING"


async def until_served(router_url: str, router_ca: Path | str, model: str) -> None:
    """Wait until the router has an attested session with a node that serves the model."""
    await patiently(lambda: ask_served(router_url, router_ca, model))


async def ask_overdue(router_url: str, router_ca: Path | str) -> str | None:
    """Return why the router's keyset is not renewed although it should be; None if it is. Raises `RouterNotServing`."""
    context = ssl.create_default_context(cafile=str(router_ca))
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)) as client:
        try:
            async with client.get(f"{router_url}/health", ssl=context) as response:
                response.raise_for_status()
                overdue = (await response.json()).get("keyset_overdue")
        except (aiohttp.ClientError, TimeoutError, ValueError, AttributeError) as error:
            raise RouterNotServing(f"the router does not answer: {error}") from error
    return None if overdue is None else str(overdue)


async def ask_served(router_url: str, router_ca: Path | str, model: str) -> None:
    """Ask once. Raises `RouterNotServing`."""
    context = ssl.create_default_context(cafile=str(router_ca))
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)) as client:
        try:
            async with client.get(f"{router_url}/v1/aci/sessions", params={"model": model}, ssl=context) as response:
                response.raise_for_status()
                sessions = (await response.json()).get("sessions")
        except (aiohttp.ClientError, TimeoutError, ValueError, AttributeError) as error:
            raise RouterNotServing(f"the router does not answer: {error}") from error
    if not sessions:
        raise RouterNotServing(f"the router has no session with a node that serves {model}")
