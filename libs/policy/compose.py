"""It is responsible for the measured configuration: what a service's app-compose says about the mesh it belongs to.

dstack measures the bytes of app-compose.json. The member "teemesh" in it carries the trust anchors, so a host cannot
start the same code under other operators or in another mesh without changing the measurement. Rendering is
deterministic: the same template, image and anchors give the same bytes, and so the same compose hash, anywhere.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from libs import jcs
from libs.errors import Code, MeshError
from libs.policy.members import Members
from libs.policy.vocabulary import KEY_BYTES, ROLE, TRUST_DOMAIN
from libs.tee.secp256k1 import PUBLIC_KEY_BYTES, is_public_key

IMAGE_DIGEST_PLACEHOLDER = "${IMAGE_DIGEST}"
_IMAGE_DIGEST = re.compile(r"(sha256:)?([0-9a-f]{64})")
_MEMBER = "teemesh"


class ComposeMalformed(MeshError):
    """The app-compose, or the template for one, cannot be used."""

    code = Code.INVALID_ARGUMENT
    reason = "COMPOSE_MALFORMED"


@dataclass(frozen=True, slots=True)
class Anchors:
    """What a service is measured with: who it is, which mesh it is of, and whose signatures it obeys."""

    role: str
    trust_domain: str
    operator_keys: tuple[bytes, ...]
    """Ed25519 public keys, distinct."""
    operator_threshold: int
    dstack_kms_root: bytes | None = None
    """For role kms: the secp256k1 key (compressed) of the only dstack KMS whose keys may seal the mesh's root."""


def render(template: bytes, image_digest: str, anchors: Anchors) -> bytes:
    """Return the app-compose to deploy: canonical JSON, the exact bytes that dstack measures.

    `image_digest` is the SHA-256 of the image manifest, hexadecimal, with or without "sha256:". Raises
    `ComposeMalformed`.
    """
    value = _load(template)
    if _MEMBER in value:
        raise ComposeMalformed("the template already has a member teemesh: it is filled in here")
    if value.get("name") != f"teemesh-{anchors.role}":
        raise ComposeMalformed(f"the template's name must be teemesh-{anchors.role}")
    digest = _IMAGE_DIGEST.fullmatch(image_digest)
    if digest is None:
        raise ComposeMalformed("the image digest must be 64 lower-case hexadecimal digits, for example sha256:0123...")
    services = value.get("docker_compose_file")
    if not isinstance(services, str) or IMAGE_DIGEST_PLACEHOLDER not in services:
        raise ComposeMalformed(f"docker_compose_file must be a text that names the image by {IMAGE_DIGEST_PLACEHOLDER}")
    services = services.replace(IMAGE_DIGEST_PLACEHOLDER, digest[2])
    if "$" in services:
        # Docker Compose would take it from the environment, which nobody measures.
        raise ComposeMalformed("docker_compose_file must have no variable but the image digest")
    value["docker_compose_file"] = services
    value[_MEMBER] = {
        "role": anchors.role,
        "trust_domain": anchors.trust_domain,
        "operator_keys": [key.hex() for key in anchors.operator_keys],
        "operator_threshold": anchors.operator_threshold,
    }
    if anchors.dstack_kms_root is not None:
        value[_MEMBER]["dstack_kms_root"] = anchors.dstack_kms_root.hex()
    text = jcs.dumps(value)
    if read_anchors(text.decode()) != anchors:
        raise ComposeMalformed("the anchors do not survive the measured form")
    return text


def compose_hash(app_compose: bytes) -> str:
    """Return what dstack measures: SHA-256 of the exact bytes, hexadecimal."""
    return hashlib.sha256(app_compose).hexdigest()


def default_app_id(app_compose: bytes) -> str:
    """Return the app id that dstack gives when none was assigned: 20 bytes of the compose hash, hexadecimal."""
    return compose_hash(app_compose)[:40]


def read_anchors(app_compose_text: str) -> Anchors:
    """Read the anchors from a measured app-compose. Raises `ComposeMalformed`; other members are dstack's own."""
    try:
        encoded = app_compose_text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ComposeMalformed("the app-compose is not UTF-8") from error
    value = _load(encoded)
    if _MEMBER not in value:
        raise ComposeMalformed("teemesh is missing: render the app-compose with teemesh policy compose")
    members = Members(value[_MEMBER], _MEMBER, ComposeMalformed)
    role = members.text("role", ROLE)
    trust_domain = members.text("trust_domain", TRUST_DOMAIN)
    operator_keys = tuple(bytes.fromhex(key) for key in members.hexadecimals("operator_keys", KEY_BYTES))
    threshold = members.integer("operator_threshold", 1, len(operator_keys))
    dstack_kms_root = _read_dstack_kms_root(members, role) if members.has("dstack_kms_root") else None
    members.end()
    return Anchors(role, trust_domain, operator_keys, threshold, dstack_kms_root)


def _read_dstack_kms_root(members: Members, role: str) -> bytes:
    root = members.octets("dstack_kms_root", PUBLIC_KEY_BYTES)
    if not is_public_key(root):
        raise members.refuse("dstack_kms_root", "must be a compressed secp256k1 public key")
    if role != "kms":
        # No other role takes keys of dstack's: there it would look like a check and be none.
        raise members.refuse("dstack_kms_root", "is for role kms alone")
    return root


def _load(data: bytes) -> dict[str, Any]:
    try:
        return jcs.loads_object(data)
    except jcs.JsonMalformed as error:
        raise ComposeMalformed(f"the app-compose is {error}") from error
