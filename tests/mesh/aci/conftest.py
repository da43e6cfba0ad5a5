"""One mesh for all of these tests, and what most of them look at."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from tests.mesh.aci import reader
from tests.mesh.aci.exchanges import Exchanges, current_session
from tests.mesh.aci.provider import ANSWER, Provider
from tests.mesh.aci.reports import Challenge, challenge
from tests.mesh.aci.sealing import SECP256K1, X25519, Envelope
from tests.mesh.aci.stage import PLAIN_MODEL, Stage, staged
from tests.mesh.aci.wire import ATTESTATION, SESSIONS, Answer, Router
from tests.mesh.running import short_folder


@pytest.fixture(scope="package")
def stage() -> Iterator[Stage]:
    with short_folder() as folder, staged(folder) as ready:
        yield ready


@pytest.fixture
def router(stage: Stage) -> Router:
    return stage.router


@pytest.fixture
def provider(stage: Stage) -> Provider:
    """The service outside the mesh, with its usual answer and nothing asked yet."""
    stage.provider.answers(ANSWER)
    stage.provider.bodies.clear()
    return stage.provider


@pytest.fixture(scope="package")
def exchanges(stage: Stage) -> Exchanges:
    return Exchanges(stage)


@pytest.fixture(scope="package")
def challenged(stage: Stage) -> Challenge:
    """A report for a nonce of our own."""
    return challenge(stage.router, secrets.token_hex(32))


@pytest.fixture(scope="package")
def unchallenged(stage: Stage) -> Challenge:
    return challenge(stage.router, None)


@pytest.fixture(scope="package")
def keyset(challenged: Challenge) -> dict[str, Any]:
    return challenged.keyset


@pytest.fixture
def session(stage: Stage) -> dict[str, Any]:
    """The full record of the session of the mesh's node."""
    document: dict[str, Any] = reader.parse(stage.router.get(f"{SESSIONS}/{current_session(stage)}").body)
    return document


@pytest.fixture
def listed(router: Router) -> Answer:
    """The list of current sessions."""
    return router.get(SESSIONS)


@pytest.fixture
def report(router: Router) -> Answer:
    return router.get(ATTESTATION)


@pytest.fixture(params=[X25519, SECP256K1], ids=["x25519", "secp256k1"])
def envelope(request: pytest.FixtureRequest, keyset: dict[str, Any]) -> Envelope:
    """For one request of E2EE v2 to the provider that answers what a test says, under each suite."""
    return _to(keyset, request.param)


@pytest.fixture
def x25519(keyset: dict[str, Any]) -> Envelope:
    return _to(keyset, X25519)


@pytest.fixture
def secp256k1(keyset: dict[str, Any]) -> Envelope:
    return _to(keyset, SECP256K1)


def _to(keyset: dict[str, Any], algo: str) -> Envelope:
    entries = [entry for entry in keyset["e2ee_public_keys"] if entry["algo"] == algo]
    assert entries, "the keyset has no key of this suite"
    return Envelope.to(entries[0], PLAIN_MODEL)
