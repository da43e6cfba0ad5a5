"""It is responsible for stages of pipelines: jobs run code of their owners' own, so their entries are held to their
form, and to the signature of the log key that the job's evidence claims.

A stage of version 1 has no signature. That its job wrote it is then the word of whoever admitted it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from libs.audit.log.entries import EntryWrong, PublicEntry, canonical, octets
from libs.errors import Code, MeshError

PIPELINE = 11
_CONTEXT = b"teemesh/stage/v1\x00"
_MEMBERS = {"v", "stage", "name", "inputs", "outputs", "parameters_sha256", "began_ms", "ended_ms"}
_STEPS = {"data_preprocessing", "training", "fine_tuning", "evaluation", "federated_round"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._/@:-]{0,127}")
_MOST = 1024
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}")
_PRIVACY = {
    "epsilon": re.compile(r"(0|[1-9][0-9]{0,8})(\.[0-9]{1,20})?"),
    "delta": re.compile(r"0(\.[0-9]{1,20})?"),
    "unit": _LABEL,
    "library": _LABEL,
    "version": _LABEL,
}


class StageUnproven(MeshError):
    """A stage is not signed by the job whose sequence it stands in."""

    code = Code.PERMISSION_DENIED
    reason = "LOG_STAGE_UNPROVEN"


def judge_stage(entry: PublicEntry, log_key: bytes | None) -> bool:
    """Say whether a stage is signed, and then by its issuer: False is one of before there were signatures.

    `log_key` is the issuer's, 32 bytes; without it the form alone is judged. Raises `EntryWrong`, `StageUnproven`.
    """
    body = dict(entry.body)
    version = _whole(body.get("v"))
    if version not in (1, 2):
        raise EntryWrong("a stage is of version 1 or 2")
    if version == 1:
        _judge_form(body)
        return False
    signature = octets(body.pop("signature", None), 64)
    _judge_form({name: value for name, value in body.items() if name != "privacy"})
    if "privacy" in body:
        _judge_privacy(body["privacy"])
    if log_key is not None:
        try:
            Ed25519PublicKey.from_public_bytes(log_key).verify(signature, _signed(entry, body))
        except InvalidSignature as error:
            raise StageUnproven("the stage is not signed by the job that it stands under") from error
    return True


def _signed(entry: PublicEntry, unsigned: Mapping[str, Any]) -> bytes:
    whole = {
        "v": 1,
        "kind": entry.kind,
        "issuer": entry.issuer.hex(),
        "issuer_seq": entry.issuer_seq,
        "prev": entry.previous.hex(),
        "tenant": None,
        "body": unsigned,
    }
    return _CONTEXT + sha256(canonical(whole)).digest()


def _judge_form(body: Mapping[str, Any]) -> None:
    if body.keys() != _MEMBERS:
        raise EntryWrong("a stage has other members")
    if not isinstance(body["stage"], str) or body["stage"] not in _STEPS:
        raise EntryWrong("it is no stage that is known")
    _name(body["name"])
    octets(body["parameters_sha256"], 32)
    if not 0 <= _whole(body["began_ms"]) <= _whole(body["ended_ms"]):
        raise EntryWrong("a stage does not end before it began")
    _artifacts(body["inputs"], {"made_by"})
    if not _artifacts(body["outputs"], set()):
        raise EntryWrong("a stage makes something")


def _judge_privacy(value: object) -> None:
    if not isinstance(value, dict) or value.keys() != _PRIVACY.keys() | {"releases"}:
        raise EntryWrong("what a stage says of privacy has other members")
    for name, form in _PRIVACY.items():
        if not isinstance(value[name], str) or not form.fullmatch(value[name]):
            raise EntryWrong("what a stage says of privacy is no number, or no name")
    if _whole(value["releases"]) < 1:
        raise EntryWrong("privacy is spent on something that is released")


def _artifacts(value: object, may_have: set[str]) -> int:
    if not isinstance(value, list) or len(value) > _MOST:
        raise EntryWrong(f"a stage reads or makes a list of at most {_MOST}")
    for each in value:
        if not isinstance(each, dict) or each.keys() - may_have != {"name", "sha256"}:
            raise EntryWrong("what a stage reads or makes has other members")
        _name(each["name"])
        octets(each["sha256"], 32)
        if "made_by" in each:
            octets(each["made_by"], 32)
    if len({each["name"] for each in value}) != len(value):
        raise EntryWrong("a name stands for two things of one stage")
    return len(value)


def _name(value: object) -> None:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise EntryWrong("what people are to read is no name")


def _whole(value: object) -> int:
    if type(value) is not int:
        raise EntryWrong("a whole number is wanted")
    return value
