"""It is responsible for entries that lie in clear: salt and canonical JSON, which must say what their leaf says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from libs.errors import Code, MeshError

_SALT_SIZE = 32
_MEMBERS = {"v", "kind", "issuer", "issuer_seq", "prev", "tenant", "body"}
_MAX_SAFE = 2**53 - 1


class EntryWrong(MeshError):
    """The body is no canonical entry, or not the one that its row announces."""

    code = Code.DATA_LOSS
    reason = "LOG_ENTRY_WRONG"


@dataclass(frozen=True, slots=True)
class PublicEntry:
    """An entry of the public vault."""

    kind: int
    issuer: bytes
    issuer_seq: int
    previous: bytes
    body: Mapping[str, Any]


def read_object(data: bytes) -> dict[str, Any]:
    """Read a JSON object that is in its canonical form (RFC 8785), of integers only. Raises `EntryWrong`."""
    try:
        value = _DECODER.decode(data.decode())
        is_canonical = canonical(value) == data
    except (ValueError, RecursionError) as error:
        raise EntryWrong(f"it is not JSON of integers, text and lists: {error}") from error
    if not isinstance(value, dict) or not is_canonical:
        raise EntryWrong("it is not a JSON object in its canonical form")
    return value


def canonical(value: object) -> bytes:
    """Return the canonical form of what the decoder returned: names in the order of their UTF-16 code units."""
    return json.dumps(_in_order(value), ensure_ascii=False, separators=(",", ":")).encode()


def read_entry(body: bytes, kind: int, issuer: bytes, issuer_seq: int) -> PublicEntry:
    """Read a public body whose hash is its leaf's commitment. Raises `EntryWrong`."""
    value = read_object(body[_SALT_SIZE:])
    if value.keys() != _MEMBERS or type(value["v"]) is not int or value["v"] != 1:
        raise EntryWrong("it is no entry of version 1")
    said = (value["kind"], value["issuer"], value["issuer_seq"], value["tenant"])
    if said != (kind, issuer.hex(), issuer_seq, None) or isinstance(value["kind"], bool):
        raise EntryWrong("kind, issuer, number or tenant differ from the leaf's")
    previous = octets(value["prev"], 32)
    if not isinstance(value["body"], dict):
        raise EntryWrong("its body is no object")
    return PublicEntry(kind, issuer, issuer_seq, previous, value["body"])


def octets(text: object, size: int | None = None) -> bytes:
    """Return the bytes of lower-case hexadecimal. Raises `EntryWrong`."""
    try:
        value = bytes.fromhex(text) if isinstance(text, str) else b""
    except ValueError as error:
        raise EntryWrong("lower-case hexadecimal is wanted") from error
    if value.hex() != text or size not in (None, len(value)):
        raise EntryWrong("lower-case hexadecimal of another length is wanted")
    return value


def _in_order(value: object) -> object:
    if isinstance(value, dict):
        return {name: _in_order(value[name]) for name in sorted(value, key=lambda name: name.encode("utf-16-be"))}
    return [_in_order(each) for each in value] if isinstance(value, list) else value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name stands twice")
    return members


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is no integer")


def _integer(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > _MAX_SAFE:
        raise ValueError("an integer is beyond 2^53 - 1")
    return int(text)


_DECODER = json.JSONDecoder(
    object_pairs_hook=_once, parse_int=_integer, parse_float=_no_float, parse_constant=_no_float
)
