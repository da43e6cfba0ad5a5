"""It is responsible for reference.json: what good evidence from one platform shows, apart from our own composes.

The software TEE publishes such a file about itself. For hardware an operator writes one per image and machine shape,
from values that they computed from the image they built or audited; the members that only a running machine can tell
("device_id", "instances", "pccs_url", "kms_public_key") are then left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from libs.errors import Code, MeshError
from libs.policy.compose import compose_hash, default_app_id
from libs.policy.members import Members
from libs.tee.measurement import Measurement
from libs.tee.nvidia.keys import KEY_ID
from libs.tee.secp256k1 import PUBLIC_KEY_BYTES
from services.cli.terminal.inputs import read_json

_TDX = re.compile("tdx")
_ISSUER = re.compile(r"https://[a-z0-9.:/-]{1,200}")
_MAX_CERTIFICATE_BYTES = 8192
_AUTHORITY = re.compile(rf"(?:[0-9a-f]{{2}}){{1,{_MAX_CERTIFICATE_BYTES}}}")
_MAX_KEY_BYTES = 256
_UNUSED = ("pccs_url",)


class ReferenceMalformed(MeshError):
    """The file of reference values cannot be used."""

    code = Code.INVALID_ARGUMENT
    reason = "REFERENCE_MALFORMED"


@dataclass(frozen=True, slots=True)
class DeployedCompose:
    """A rendered app-compose, and the app id it runs under when that is neither the default nor in a reference."""

    text: bytes
    app_id: str | None = None


@dataclass(frozen=True, slots=True)
class GpuReference:
    """Who vouches for the platform's GPUs."""

    issuer: str
    keys: Mapping[str, str]
    """Key id to SubjectPublicKeyInfo (DER, hexadecimal) of the issuer's token keys."""
    roots: tuple[str, ...]
    """Authorities (DER, hexadecimal) that certify further token keys."""
    device_root: bytes
    """DER of the root under which the GPUs sign their own reports."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One platform: vendor, image, machine shape and key provider. Digests are lower-case hexadecimal."""

    vendor_root: bytes
    """DER."""
    development: bool
    td_attributes: str
    os_image_hash: str
    key_provider: str
    mrtd: str
    rtmr0: str
    rtmr1: str
    rtmr2: str
    gpu: GpuReference | None
    """None: policies made from this say nothing about GPUs."""
    app_ids: Mapping[str, frozenset[str]]
    """Compose hash to the app ids that were assigned to it; dstack may assign one that the code does not determine."""
    device_id: str | None
    """The machine, where the platform is one."""
    kms_public_key: bytes | None
    """The dstack KMS's secp256k1 root, compressed."""

    def measurements(self, compose: DeployedCompose) -> list[Measurement]:
        """Return what evidence of this compose shows here, one for each app id that it has."""
        measured = compose_hash(compose.text)
        assigned = {compose.app_id} if compose.app_id else self.app_ids.get(measured, {default_app_id(compose.text)})
        return [
            Measurement(
                compose_hash=measured,
                app_id=app_id,
                os_image_hash=self.os_image_hash,
                key_provider=self.key_provider,
                mrtd=self.mrtd,
                rtmr0=self.rtmr0,
                rtmr1=self.rtmr1,
                rtmr2=self.rtmr2,
            )
            for app_id in sorted(assigned)
        ]


def read_reference(path: Path) -> Reference:
    """Read reference.json. Raises `InputUnreadable`, `ReferenceMalformed`."""
    members = Members(read_json(path), "", ReferenceMalformed)
    members.integer("v", 1, 1)
    members.text("tee_type", _TDX)
    reference = Reference(
        vendor_root=members.blob("vendor_root", _MAX_CERTIFICATE_BYTES),
        development=members.flag("development"),
        td_attributes=members.hexadecimal("td_attributes", 8),
        os_image_hash=members.hexadecimal("os_image_hash", 32),
        key_provider=members.hexadecimal("key_provider", 32),
        mrtd=members.hexadecimal("mrtd", 48),
        rtmr0=members.hexadecimal("rtmr0", 48),
        rtmr1=members.hexadecimal("rtmr1", 48),
        rtmr2=members.hexadecimal("rtmr2", 48),
        gpu=_read_gpu(members.object("gpu")) if members.has("gpu") else None,
        app_ids=_read_app_ids(members),
        device_id=members.hexadecimal("device_id", 32) if members.has("device_id") else None,
        kms_public_key=members.octets("kms_public_key", PUBLIC_KEY_BYTES) if members.has("kms_public_key") else None,
    )
    for name in _UNUSED:
        if members.has(name):
            members.value(name)
    members.end()
    return reference


def _read_gpu(members: Members) -> GpuReference:
    issuer = members.text("issuer", _ISSUER)
    pinned: dict[str, str] = {}
    if members.has("keys"):
        keys = members.object("keys")
        pinned = {kid: keys.blob(kid, _MAX_KEY_BYTES).hex() for kid in keys.names(KEY_ID)}
    reference = GpuReference(
        issuer=issuer,
        keys=pinned,
        roots=members.texts("roots", _AUTHORITY, may_be_empty=True) if members.has("roots") else (),
        device_root=members.blob("device_root", _MAX_CERTIFICATE_BYTES),
    )
    members.end()
    return reference


def _read_app_ids(members: Members) -> Mapping[str, frozenset[str]]:
    if not members.has("instances"):
        return {}
    app_ids: dict[str, frozenset[str]] = {}
    instances = members.object("instances")
    for name in instances.names(re.compile(r"[a-z0-9-]{1,63}")):
        instance = instances.object(name)
        measured = instance.hexadecimal("compose_hash", 32)
        app_ids[measured] = app_ids.get(measured, frozenset()) | {instance.hexadecimal("app_id", 20)}
        instance.end()
    return app_ids
