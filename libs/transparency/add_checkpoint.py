"""What a log sends to a witness, and where: C2SP's `add-checkpoint`, and the extension that brings a new key.

Follows https://c2sp.org/tlog-witness. A log whose checkpoint key is born with each process also has `add-key`: the same
request, and the evidence that the key is that log's.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from libs import jcs
from libs.errors import Code, MeshError

ADD_CHECKPOINT = "/add-checkpoint"
ADD_KEY = "/add-key"
SIZE_TYPE = "text/x.tlog.size"
MAX_PROOF_LINES = 63
MAX_REQUEST_BYTES = 1 << 16
MAX_KEY_REQUEST_BYTES = 1 << 20
_VERSION = 1
_LARGEST = 2**63
_MEMBERS = frozenset({"v", "request", "certificate", "mesh_ca", "evidence", "policies", "revocations"})


class WitnessRequestMalformed(MeshError):
    """The body is no request to a witness."""

    code = Code.INVALID_ARGUMENT
    reason = "WITNESS_REQUEST_MALFORMED"


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """A checkpoint to cosign. Nothing in it is proven."""

    old: int
    """The size that the witness cosigned last, as the log believes."""
    path: tuple[bytes, ...]
    """The consistency proof from there."""
    note: bytes

    def encode(self) -> bytes:
        lines = [f"old {self.old}", *(base64.b64encode(step).decode() for step in self.path), ""]
        return "".join(f"{line}\n" for line in lines).encode() + self.note

    @classmethod
    def parse(cls, body: bytes) -> AddCheckpoint:
        """Read a request. Raises `WitnessRequestMalformed`."""
        head, separator, note = body.partition(b"\n\n")
        if len(body) > MAX_REQUEST_BYTES or not separator:
            raise WitnessRequestMalformed("a request is an old size, hashes, an empty line and a checkpoint")
        first, *steps = head.split(b"\n")
        if len(steps) > MAX_PROOF_LINES or len(first) > 32:
            raise WitnessRequestMalformed(f"a request has an old size and at most {MAX_PROOF_LINES} hashes")
        try:
            old = int(first.removeprefix(b"old "))
            request = cls(old, tuple(base64.b64decode(step, validate=True) for step in steps), note)
        except (ValueError, binascii.Error) as error:
            raise WitnessRequestMalformed("the old size is a decimal number, and hashes are base64") from error
        if not 0 <= old < _LARGEST or request.encode() != body:
            raise WitnessRequestMalformed("the request is not in its one form")
        return request


@dataclass(frozen=True, slots=True)
class AddKey:
    """A checkpoint under a key that the witness may not know, and what proves whose key it is."""

    request: AddCheckpoint
    certificate: bytes
    """The log's mesh certificate, DER."""
    mesh_ca: bytes
    """The mesh CA's certificate, DER."""
    evidence: bytes
    """The evidence document that the certificate names; its claims name the origin and the log's keys."""
    policies: tuple[bytes, ...]
    """Signed versions, in order, that lead from the one that the witness may have to the one in force."""
    revocations: tuple[bytes, ...]
    """Signed revocations."""

    def encode(self) -> bytes:
        return jcs.dumps(
            {
                "v": _VERSION,
                "request": self.request.encode().decode(),
                "certificate": self.certificate.hex(),
                "mesh_ca": self.mesh_ca.hex(),
                "evidence": self.evidence.decode(),
                "policies": [policy.decode() for policy in self.policies],
                "revocations": [revocation.decode() for revocation in self.revocations],
            }
        )

    @classmethod
    def parse(cls, body: bytes) -> AddKey:
        """Read a request. Raises `WitnessRequestMalformed`."""
        if len(body) > MAX_KEY_REQUEST_BYTES:
            raise WitnessRequestMalformed(f"a request has at most {MAX_KEY_REQUEST_BYTES} bytes")
        try:
            members = jcs.loads_object(body)
            if members.keys() != _MEMBERS or members["v"] != _VERSION:
                raise ValueError("another version")
            return cls(
                AddCheckpoint.parse(_text(members, "request")),
                bytes.fromhex(members["certificate"]),
                bytes.fromhex(members["mesh_ca"]),
                _text(members, "evidence"),
                _texts(members, "policies"),
                _texts(members, "revocations"),
            )
        except (jcs.JsonMalformed, ValueError, TypeError) as error:
            raise WitnessRequestMalformed(f"no request to add a key: {error}") from error


def newest_path(origin: str) -> str:
    """Return where a witness shows the newest checkpoint that it cosigned of a log."""
    return f"/{sha256(origin.encode()).hexdigest()}/checkpoint"


def _text(members: Mapping[str, Any], name: str) -> bytes:
    if not isinstance(members[name], str):
        raise ValueError(f"{name} is a text")
    return bytes(members[name].encode())


def _texts(members: Mapping[str, Any], name: str) -> tuple[bytes, ...]:
    values = members[name]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name} is a list of texts")
    return tuple(value.encode() for value in values)
