"""Responsible for `reference.json`: what an operator needs to write a policy that accepts this machine's evidence.

The file is published when the service is ready, or was asked for its machine only, and holds no secret. It is a
statement by a development machine about itself; a policy that names its vendor root must say that the root is for
development.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from libs import jcs
from libs.files import write_durably
from services.devtee import secp256k1
from services.devtee.eventlog import replay
from services.devtee.machine import Machine, VirtualTd
from services.devtee.nras import ISSUER
from services.devtee.quotes import TD_ATTRIBUTES

FILE_NAME = "reference.json"


def reference_values(machine: Machine, tds: Mapping[str, VirtualTd], pccs_url: str | None) -> dict[str, Any]:
    """The document: bytes as lower-case hex. A machine that does not run has no TDs and no PCCS."""
    boot = machine.image.boot_events()
    return {
        "v": 1,
        "tee_type": "tdx",
        "development": True,
        "vendor_root": machine.vendor_root.hex(),
        **({} if pccs_url is None else {"pccs_url": pccs_url}),
        "device_id": machine.device_id.hex(),
        "os_image_hash": machine.image.os_image_hash.hex(),
        "mrtd": machine.image.mrtd.hex(),
        **{f"rtmr{imr}": replay(boot, imr).hex() for imr in range(3)},
        "td_attributes": TD_ATTRIBUTES.hex(),
        "key_provider": sha256(machine.kms.provider.encode()).hexdigest(),
        "kms_public_key": secp256k1.compressed_public_key(machine.kms.root).hex(),
        "gpu": {
            "issuer": ISSUER,
            # Its signing keys come and go.
            "roots": [machine.gpus.nras.authority.root.der.hex()],
            "device_root": machine.gpus.device_root.hex(),
        },
        "instances": {
            name: {"app_id": td.identity.app_id.hex(), "compose_hash": td.compose_hash.hex()}
            for name, td in tds.items()
        },
    }


def publish(folder: Path, values: Mapping[str, Any]) -> Path:
    """Write the document durably; readers see the old one or the new one."""
    path = folder / FILE_NAME
    write_durably(path, jcs.dumps(values), mode=0o644)
    return path
