"""Hostile documents fail a client's checks; they never break the client."""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.client.attestation import verify_report
from libs.client.checks import Materials, run_checks
from libs.errors import MeshError
from tests.fakes.attested_mesh import AttestedMesh
from tests.fakes.gathered import NONCE, gathered

_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet=st.characters()) | st.sampled_from(["\ud800", "00"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def mesh() -> AttestedMesh:
    return AttestedMesh.create(int(time.time()))


@pytest.fixture(scope="module")
def honest(mesh: AttestedMesh) -> Materials:
    return replace(gathered(mesh, b"{}", b"{}"), mesh_ca=None)


def _replaced(document: bytes, seed: int, value: object) -> bytes:
    """Put a value in place of one member, anywhere in the document."""
    chance, root = random.Random(seed), json.loads(document)  # noqa: S311 - reproducible, not secret
    holder = root
    while True:
        name = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        below = holder[name]
        if not isinstance(below, dict | list) or not below or chance.random() < 0.3:
            holder[name] = value
            return json.dumps(root).encode()
        holder = below


@pytest.mark.parametrize("name", ["report", "receipt", "session", "commitment", "issuer_evidence", "ledger_evidence"])
@given(seed=st.integers(0, 2**32), value=_JSON)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_member_may_hold_anything(honest: Materials, name: str, seed: int, value: object) -> None:
    changed: dict[str, Any] = {name: _replaced(getattr(honest, name), seed, value)}
    checks = run_checks(replace(honest, **changed))

    assert len(checks) == 12
    assert all(check.passed == (check.reason is None) for check in checks)


@given(document=st.binary(max_size=200))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_may_come_as_a_report(mesh: AttestedMesh, document: bytes) -> None:
    with pytest.raises(MeshError):
        verify_report(document, NONCE, mesh.policy(), mesh.now)
