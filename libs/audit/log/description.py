"""It is responsible for `log.json`: which log the files are of."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from libs.audit.log.entries import EntryWrong, canonical, octets, read_object
from libs.audit.log.findings import BytesWrong

_TYPES = {
    "format": int,
    "origin": str,
    "log_id": str,
    "stream": str,
    "seed_policy_digest": str,
    "operator_keys": list,
    "operator_threshold": int,
    "sha256": str,
}


@dataclass(frozen=True, slots=True)
class Description:
    """What a log is, and by whose policy its writers were let in first."""

    origin: str
    seed_policy_digest: bytes
    operator_keys: tuple[bytes, ...]
    operator_threshold: int


def read_description(data: bytes) -> Description:
    """Read `log.json`, which is hashed by itself. Raises `BytesWrong`."""
    try:
        if not data.endswith(b"\n"):
            raise EntryWrong("its last line has no end")
        members = read_object(data[:-1])
        if {name: type(value) for name, value in members.items()} != _TYPES or members["format"] != 1:
            raise EntryWrong("it has other members, or is of another version")
        keys = tuple(octets(key, 32) for key in members["operator_keys"])
        seed = octets(members["seed_policy_digest"], 32)
    except EntryWrong as error:
        raise BytesWrong(0, str(error)) from error
    stated = members.pop("sha256")
    if sha256(canonical(members)).hexdigest() != stated:
        raise BytesWrong(0, "it does not match its own hash")
    if members["log_id"] != sha256(members["origin"].encode()).hexdigest():
        raise BytesWrong(0, "the log's id is not its origin's")
    return Description(members["origin"], seed, keys, members["operator_threshold"])
