"""Responsible for where a key of dstack's comes from: its signature chain, up to a pinned dstack KMS root.

The application's root signs a claim that names the key (link 0), and the KMS root signs the application's root together
with the application id (link 1). Both signers are recovered from the signatures, and recovery names some key for any
message: a chain for another purpose, key, application or root therefore ends, all alike, in another root than the
pinned one, and no finer reason can be given. The pin MUST come from elsewhere than the chain.

The chain says nothing of time, and the claim of version 0 nothing of the path: who uses it names the path as purpose.
"""

from __future__ import annotations

from collections.abc import Sequence

from libs.errors import Code, MeshError
from libs.tee.keccak import keccak256
from libs.tee.signer_recovery import recover_signer

_APP_ID_BYTES = 20
_ISSUED = b"dstack-kms-issued:"


class CustodyLinkMissing(MeshError):
    """A chain without its two links: the key comes from no KMS (a local provider leaves link 1 empty)."""

    code = Code.PERMISSION_DENIED
    reason = "CUSTODY_LINK_MISSING"


class CustodyNotProven(MeshError):
    """The chain does not lead from this key, purpose and application to the pinned root."""

    code = Code.PERMISSION_DENIED
    reason = "CUSTODY_NOT_PROVEN"


def claim_v0(purpose: str, public_key: bytes) -> bytes:
    """Return what an application's root signs for `GetKey` of dstack 0.5. `public_key`: compressed, or Ed25519's 32.

    The claim of dstack 0.6's own `/v1/GetKey` has another form, and nobody here takes keys from there.
    """
    return f"{purpose}:{public_key.hex()}".encode()


def verify_chain(claim: bytes, chain: Sequence[bytes], *, app_id: bytes, kms_root: bytes) -> bytes:
    """Return the application's root (compressed) once the chain leads from `claim` to the pinned `kms_root`.

    `app_id` is the one expected, never one that came with the chain. Raises `CustodyLinkMissing`, `CustodyNotProven`
    and what `recover_signer` raises.
    """
    if len(chain) != 2 or not all(chain):
        raise CustodyLinkMissing("a key's signature chain has two links: the guest has no key of a dstack KMS")
    if len(app_id) != _APP_ID_BYTES:
        # The message has no lengths in it: only with this one is it unambiguous.
        raise CustodyNotProven(f"an application id has {_APP_ID_BYTES} bytes, not {len(app_id)}")
    app_root = recover_signer(keccak256(claim), chain[0])
    found = recover_signer(keccak256(_ISSUED + app_id + app_root), chain[1])
    if found != kms_root:
        raise CustodyNotProven(
            f"the key's chain does not lead to the pinned dstack KMS root {kms_root.hex()} for app {app_id.hex()}"
        )
    return app_root
