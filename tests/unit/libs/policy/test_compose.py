from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs import jcs
from libs.policy.compose import Anchors, ComposeMalformed, compose_hash, default_app_id, read_anchors, render
from libs.policy.vocabulary import JOB, SERVICE_ROLES

TEMPLATES = Path(__file__).parents[4] / "deploy" / "dstack"
DIGEST = "sha256:" + "ab" * 32
ANCHORS = Anchors("kms", "mesh.local", (b"a" * 32, b"b" * 32), 2)
DSTACK_KMS_ROOT = bytes.fromhex("03d962450a41748021c8b02787ac36ce642ff0ae25f4c55019eb527e1112cfd764")


def _template(**changes: Any) -> bytes:
    return jcs.dumps({**jcs.loads((TEMPLATES / "kms.app-compose.json").read_bytes()), **changes})


def _measured(**changes: Any) -> str:
    value = jcs.loads(render(_template(), DIGEST, ANCHORS))
    value["teemesh"].update(changes)
    return jcs.dumps(value).decode()


@pytest.mark.parametrize("role", sorted({*SERVICE_ROLES, JOB}))
def test_every_service_has_a_template_that_keeps_the_rules(role: str) -> None:
    anchors = Anchors(role, "mesh.local", ANCHORS.operator_keys, 2)
    text = render((TEMPLATES / f"{role}.app-compose.json").read_bytes(), DIGEST, anchors)
    assert read_anchors(text.decode()) == anchors
    value = jcs.loads(text)
    assert (value["manifest_version"], value["runner"], value["name"]) == (2, "docker-compose", f"teemesh-{role}")
    assert value["kms_enabled"] is True
    assert value["allowed_envs"] == []
    for off in ("gateway_enabled", "local_key_provider_enabled", "public_logs", "public_sysinfo", "no_instance_id"):
        assert value[off] is False
    services = value["docker_compose_file"]
    assert f"image: teemesh/{role}@sha256:{'ab' * 32}" in services
    if role == JOB:
        assert "- services.cli\n      - pipeline\n      - record\n      - --config=/etc/teemesh/job.toml\n" in services
    else:
        assert f"command: [python, -m, services.{role}, /etc/teemesh/{role}.toml]" in services
    assert services.count("/var/run/dstack.sock:/var/run/dstack.sock") == 1
    assert services.count("read_only: true") == services.count("image:") == 2
    assert "privileged: " not in services


def test_rendering_is_deterministic_and_hashed_as_dstack_does() -> None:
    text = render(_template(), DIGEST, ANCHORS)
    spaced = jcs.loads(_template())
    assert render(jcs.dumps(spaced), DIGEST.removeprefix("sha256:"), ANCHORS) == text
    assert render((TEMPLATES / "kms.app-compose.json").read_bytes(), DIGEST, ANCHORS) == text
    assert compose_hash(text) == hashlib.sha256(text).hexdigest()
    assert default_app_id(text) == hashlib.sha256(text).digest()[:20].hex()


def test_every_anchor_and_the_image_change_the_hash() -> None:
    variants = [
        render(_template(), DIGEST, ANCHORS),
        render(_template(), "cd" * 32, ANCHORS),
        render(_template(), DIGEST, Anchors("kms", "mesh.example.org", ANCHORS.operator_keys, 2)),
        render(_template(), DIGEST, Anchors("kms", "mesh.local", ANCHORS.operator_keys[:1], 1)),
        render(_template(), DIGEST, Anchors("kms", "mesh.local", ANCHORS.operator_keys, 1)),
        render(_template(), DIGEST, replace(ANCHORS, dstack_kms_root=DSTACK_KMS_ROOT)),
    ]
    assert len({compose_hash(text) for text in variants}) == len(variants)


def test_a_dstack_kms_root_is_measured_and_read_back() -> None:
    pinned = replace(ANCHORS, dstack_kms_root=DSTACK_KMS_ROOT)
    assert read_anchors(render(_template(), DIGEST, pinned).decode()) == pinned
    assert "dstack_kms_root" not in jcs.loads(render(_template(), DIGEST, ANCHORS))["teemesh"]


@pytest.mark.parametrize(
    ("template", "digest", "message"),
    [
        (_template(teemesh={}), DIGEST, "already has a member teemesh"),
        (_template(name="teemesh-node"), DIGEST, "name must be teemesh-kms"),
        (_template(docker_compose_file=None), DIGEST, "must be a text"),
        (_template(docker_compose_file="services: {}"), DIGEST, "names the image by"),
        (_template(docker_compose_file="${IMAGE_DIGEST} $HOME"), DIGEST, "no variable"),
        (_template(), "sha256:AB", "image digest"),
        (_template(), "latest", "image digest"),
        (b"[]", DIGEST, "JSON object"),
    ],
)
def test_a_template_that_cannot_be_trusted_is_refused(template: bytes, digest: str, message: str) -> None:
    with pytest.raises(ComposeMalformed, match=message) as refusal:
        render(template, digest, ANCHORS)
    assert refusal.value.reason == "COMPOSE_MALFORMED"


@pytest.mark.parametrize(
    "anchors",
    [
        Anchors("kms", "mesh.local", (), 1),
        Anchors("kms", "mesh.local", (b"a" * 32,), 2),
        Anchors("kms", "mesh.local", (b"a" * 32, b"a" * 32), 2),
        Anchors("kms", "mesh local", (b"a" * 32,), 1),
        replace(ANCHORS, dstack_kms_root=b""),
        replace(ANCHORS, dstack_kms_root=b"\2" + (5).to_bytes(32, "big")),
    ],
)
def test_anchors_that_no_service_would_read_are_not_rendered(anchors: Anchors) -> None:
    with pytest.raises(ComposeMalformed):
        render(_template(), DIGEST, anchors)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "teemesh is missing"),
        ("{", "not strict JSON"),
        ("\udcff", "not UTF-8"),
        (_measured(role="operator"), "teemesh.role"),
        (_measured(trust_domain="Mesh"), "teemesh.trust_domain"),
        (_measured(operator_keys=[]), "teemesh.operator_keys must not be empty"),
        (_measured(operator_keys=["ab"]), r"teemesh.operator_keys\[0\]"),
        (_measured(operator_threshold=0), "teemesh.operator_threshold"),
        (_measured(operator_threshold=3), "teemesh.operator_threshold"),
        (_measured(dstack_kms_root=None), "teemesh.dstack_kms_root must be 66 lower-case"),
        (_measured(dstack_kms_root=DSTACK_KMS_ROOT[1:].hex()), "teemesh.dstack_kms_root must be 66 lower-case"),
        (_measured(dstack_kms_root="04" + DSTACK_KMS_ROOT[1:].hex()), "must be a compressed secp256k1 public key"),
        (_measured(dstack_kms_root="02" + "00" * 31 + "05"), "must be a compressed secp256k1 public key"),
        (_measured(dstack_kms_root=DSTACK_KMS_ROOT.hex(), role="router"), "dstack_kms_root is for role kms alone"),
        (_measured(policy="x"), "teemesh.policy is not a known member"),
    ],
)
def test_anchors_are_read_strictly(text: str, message: str) -> None:
    with pytest.raises(ComposeMalformed, match=message):
        read_anchors(text)


@given(text=st.text(max_size=100))
def test_hostile_text_raises_only_the_refusal(text: str) -> None:
    with pytest.raises(ComposeMalformed):
        read_anchors(text)
