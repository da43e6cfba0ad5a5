"""It is responsible for the witness's own keys: drawn once, kept in a file of their own, never silently replaced."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from libs import jcs
from libs.errors import Code, MeshError
from libs.files import write_durably
from libs.transparency.checkpoint import Checkpoint
from libs.transparency.cosignature import CosignerKey, cosign, cosigner_key
from libs.transparency.note import Signature

NAME = "witness.key"
PUBLIC_NAME = "verifier-keys"
_VERSION = 1
_SEED_SIZE = 32


class WitnessKeyDamaged(MeshError):
    """The file of keys is not what this service wrote."""

    code = Code.DATA_LOSS
    reason = "WITNESS_KEY_DAMAGED"
    exit_status = 3


class WitnessKeyMissing(MeshError):
    """The witness remembers checkpoints, but its keys are gone: readers would not know new ones."""

    code = Code.NOT_FOUND
    reason = "WITNESS_KEY_MISSING"
    exit_status = 3


@dataclass(frozen=True, slots=True)
class WitnessKeys:
    """One witness's name and both its keys."""

    name: str
    ed25519: Ed25519PrivateKey
    ml_dsa_44: MLDSA44PrivateKey

    @property
    def public(self) -> Sequence[CosignerKey]:
        return cosigner_key(self.name, self.ed25519), cosigner_key(self.name, self.ml_dsa_44)

    def cosign(self, tree: Checkpoint, time: int) -> Sequence[Signature]:
        """The caller MUST have the tree durable, as the newest of its log, before it gives these out."""
        return cosign(tree, self.name, self.ed25519, time), cosign(tree, self.name, self.ml_dsa_44, time)


def load_keys(folder: Path, name: str, *, may_draw: bool) -> WitnessKeys:
    """Return the witness's keys, drawing them if there are none and it may. Writes the public ones beside them.

    Raises `WitnessKeyMissing` or `WitnessKeyDamaged`.
    """
    path = folder / NAME
    if not path.exists():
        if not may_draw:
            raise WitnessKeyMissing(f"{path} is gone, though the witness has cosigned: restore it, or begin anew")
        seeds = {kind: secrets.token_bytes(_SEED_SIZE).hex() for kind in ("ed25519", "ml_dsa_44")}
        write_durably(path, jcs.dumps({"v": _VERSION, **seeds}))
    keys = _read(path, name)
    write_durably(folder / PUBLIC_NAME, "".join(f"{key.text()}\n" for key in keys.public).encode(), mode=0o644)
    return keys


def _read(path: Path, name: str) -> WitnessKeys:
    try:
        members = jcs.loads_object(path.read_bytes())
        if members.keys() != {"v", "ed25519", "ml_dsa_44"} or members["v"] != _VERSION:
            raise ValueError("another version")
        return WitnessKeys(
            name,
            Ed25519PrivateKey.from_private_bytes(bytes.fromhex(members["ed25519"])),
            MLDSA44PrivateKey.from_seed_bytes(bytes.fromhex(members["ml_dsa_44"])),
        )
    except (OSError, jcs.JsonMalformed, ValueError, TypeError) as error:
        raise WitnessKeyDamaged(f"{path} is damaged: restore it") from error
