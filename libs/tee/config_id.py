"""Responsible for a TD's configuration id: what dstack's host stated of the application when it launched the TD.

The event log says the same, and registers prove the log, so the id adds no trust. But it is signed: one that says
something else is a contradiction, and one that cannot be evaluated is refused.
"""

from __future__ import annotations

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee import registers
from libs.tee.eventlog import Identity
from libs.tee.registers import KeyProvider

_BY_COMPOSE, _BY_APPLICATION = 1, 2
_PROVIDERS = {
    "none": KeyProvider.NONE,
    "local-sgx": KeyProvider.LOCAL,
    "kms": KeyProvider.KMS,
    "tpm": KeyProvider.TPM,
}


class ConfigIdNotUnderstood(MeshError):
    """The configuration id is of a form that cannot be recomputed from the evidence."""

    code = Code.PERMISSION_DENIED
    reason = "CONFIG_ID_NOT_UNDERSTOOD"


class ConfigIdMismatch(MeshError):
    """The host launched the TD for another application than the one that it measured."""

    code = Code.PERMISSION_DENIED
    reason = "CONFIG_ID_MISMATCH"


def verify_config_id(config_id: bytes, identity: Identity) -> None:
    """Prove that a 48-byte id is zero or states the identity, which MUST be of a log that replayed.

    Raises `ConfigIdNotUnderstood`, `ConfigIdMismatch`.
    """
    if not any(config_id):
        return
    form = config_id[0]
    if form == _BY_COMPOSE:
        expected = registers.mr_config_id_1(identity.compose_hash)
    elif form == _BY_APPLICATION:
        expected = _by_application(identity)
    else:
        raise ConfigIdNotUnderstood(f"a configuration id of form {form} cannot be recomputed from the evidence")
    if config_id != expected:
        raise ConfigIdMismatch("the host launched the TD for another application than the one that it measured")


def _by_application(identity: Identity) -> bytes:
    try:
        stated = jcs.loads_object(identity.key_provider)
        provider, provider_id = _PROVIDERS[stated["name"]], bytes.fromhex(stated["id"])
    except (jcs.JsonMalformed, KeyError, TypeError, ValueError) as error:
        raise ConfigIdNotUnderstood("the key-provider event does not name a provider that is known") from error
    return registers.mr_config_id_2(identity.compose_hash, identity.app_id, provider, provider_id)
