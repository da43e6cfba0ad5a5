"""`log.json`: what a log is. Written once, never changed, and hashed by itself."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from libs import jcs
from libs.files import write_durably
from libs.transparency.chain import log_id
from services.ledger.storage.damage import LogDamaged, LogMissing

NAME = "log.json"
FORMAT = 1
_TYPES = {
    "format": int,
    "origin": str,
    "log_id": str,
    "stream": str,
    "seed_policy_digest": str,
    "operator_keys": list,
    "operator_threshold": int,
}


@dataclass(frozen=True, slots=True)
class LogDescription:
    """A log's permanent facts. The seed policy and the operators' keys let its first entries be judged by it alone."""

    origin: str
    stream: str
    seed_policy_digest: bytes
    operator_keys: tuple[bytes, ...]
    operator_threshold: int

    @property
    def log_id(self) -> bytes:
        return log_id(self.origin)

    def document(self) -> bytes:
        """Return the file's bytes."""
        members = self._members()
        members["sha256"] = sha256(jcs.dumps(members)).hexdigest()
        return jcs.dumps(members) + b"\n"

    def _members(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "origin": self.origin,
            "log_id": self.log_id.hex(),
            "stream": self.stream,
            "seed_policy_digest": self.seed_policy_digest.hex(),
            "operator_keys": [key.hex() for key in self.operator_keys],
            "operator_threshold": self.operator_threshold,
        }


def write(directory: Path, description: LogDescription) -> None:
    """Write the file durably."""
    write_durably(directory / NAME, description.document())


def read(directory: Path) -> LogDescription:
    """Read the file. Raises `LogMissing`, or `LogDamaged` where a byte is not what it was written as."""
    try:
        data = (directory / NAME).read_bytes()
    except FileNotFoundError as error:
        raise LogMissing(f"{directory} holds no {NAME}; create the log first") from error
    try:
        members = jcs.loads_object(data)
        if any(type(members.get(name)) is not kind for name, kind in _TYPES.items()):
            raise ValueError("a member is missing or has the wrong type")
        description = LogDescription(
            origin=members["origin"],
            stream=members["stream"],
            seed_policy_digest=bytes.fromhex(members["seed_policy_digest"]),
            operator_keys=tuple(bytes.fromhex(key) for key in members["operator_keys"]),
            operator_threshold=members["operator_threshold"],
        )
        expected = description.document()
    except (jcs.JsonMalformed, ValueError, TypeError) as error:
        raise LogDamaged(NAME, 0, f"it is not a log's description: {error}") from error
    if expected != data:
        at = next((at for at, pair in enumerate(zip(expected, data, strict=False)) if pair[0] != pair[1]), len(data))
        raise LogDamaged(NAME, at, "it does not match its own hash")
    return description
