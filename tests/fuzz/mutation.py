"""Structured mutation: changes something inside a document and repairs what encloses it.

It is responsible for getting hostile bytes past the outer checks. A changed certificate keeps its DER lengths, a
changed claim its base64url and hex, a changed event its SCALE or MessagePack frame; so what dies, dies of the change.
The form of a value is guessed from its first bytes, at every level.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import msgpack

from tests.fuzz import der, scale

# The library has no types of its own.
_MESSAGEPACK: Any = msgpack
_HEX = re.compile(rb"(?:[0-9a-f]{2})+")
_TOKEN = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{80,}={0,2}")
_PEM = re.compile(rb"(-----BEGIN CERTIFICATE-----\s)([A-Za-z0-9+/=\s]+)(-----END CERTIFICATE-----)")
_COMPRESSED = b"ELGZv1"
_MAX_INFLATED = 1 << 16
_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, (1 << 53) - 1, (1 << 64) - 1)
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**53,
    2**64,
    10**400,
    1.5,
    "",
    "0",
    "00",
    "\ud800",
    "\U0001f600",
    "2026-01-01T00:00:00",
    "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59",
    [],
    {},
    [[]],
    {"": None},
    [None] * 600,
)


@dataclass(frozen=True, slots=True)
class Chance:
    """Where the choices come from, and who changes bytes that have no structure."""

    random: Random
    scramble: Callable[[bytes], bytes]

    @classmethod
    def of(cls, seed: int) -> Chance:
        random = Random(seed)  # noqa: S311 - reproducible, not secret
        return cls(random, lambda data: scramble(data, random))


def mutate(data: bytes, chance: Chance) -> bytes:
    """Return the document with one thing changed, at whatever depth."""
    if not data or chance.random.random() < 0.1:
        return chance.scramble(data)
    for belongs, change in _FORMS:
        if belongs(data):
            changed = change(data, chance)
            if changed is not None:
                return changed
    return chance.scramble(data)


def scramble(data: bytes, random: Random) -> bytes:
    """Change bytes without knowing what they are."""
    changed = bytearray(data)
    at = random.randrange(len(data) + 1)
    number = random.choice(_NUMBERS).to_bytes(8, random.choice(("little", "big")))
    match random.randrange(8):
        case 0 | 1 if at < len(data):
            changed[at] ^= 1 << random.randrange(8)
        case 2 if at < len(data):
            changed[at] = random.randrange(256)
        case 3:
            size = random.choice((1, 2, 4, 8))
            changed[at : at + size] = (number[:size] if number[0] else number[-size:])[: len(data) - at]
        case 4:
            del changed[at : at + random.choice((1, 2, 8, len(data)))]
        case 5:
            changed[at:at] = random.randbytes(random.choice((1, 2, 8, 64)))
        case 6:
            start = random.randrange(len(data) + 1)
            changed[at:at] = data[start : start + random.choice((4, 32, 256))]
        case _:
            changed += bytes(random.choice((1, 8, 64)))
    return bytes(changed)


def _json(data: bytes, chance: Chance) -> bytes | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    value = _tree(value, chance)
    try:
        # Now and then not in canonical form, or with what UTF-8 cannot say written as an escape.
        plain = chance.random.random() < 0.05
        text = json.dumps(value, ensure_ascii=plain, sort_keys=not plain, separators=(",", ":"))
        return text.encode("utf-8", "replace")
    except (ValueError, TypeError):
        return None


def _messagepack(data: bytes, chance: Chance) -> bytes | None:
    try:
        value = _MESSAGEPACK.unpackb(data, strict_map_key=False, max_buffer_size=len(data))
        packed: bytes = _MESSAGEPACK.packb(_tree(value, chance), unicode_errors="surrogateescape")
    except (ValueError, TypeError, OverflowError, RecursionError, _MESSAGEPACK.UnpackException):
        return None
    return packed


def _tree(root: Any, chance: Chance) -> Any:
    places = _places(root)
    if not places:
        return chance.random.choice(_VALUES)
    container, key = chance.random.choice(places) if chance.random.random() < 0.5 else _descended(root, chance)
    match chance.random.randrange(8):
        case 0:
            container[key] = chance.random.choice(_VALUES)
        case 1:
            del container[key]
        case 2:
            container[key] = _taken(places, chance)
        case 3 if isinstance(container, list) and len(container) < 2000:
            container.insert(key, _taken(places, chance))
        case 3:
            container[chance.random.choice(("", "a", "v", "GPU-1", "SWITCH-0"))] = _taken(places, chance)
        case _:
            container[key] = _leaf(container[key], chance)
    return root


def _descended(root: Any, chance: Chance) -> tuple[Any, Any]:
    """Walk down by chance, so that a branch with many leaves is not chosen more often than one with few."""
    container = root
    while True:
        key = (
            chance.random.choice(list(container))
            if isinstance(container, dict)
            else chance.random.randrange(len(container))
        )
        below = container[key]
        if not isinstance(below, dict | list) or not below or chance.random.random() < 0.1:
            return container, key
        container = below


def _taken(places: list[tuple[Any, Any]], chance: Chance) -> Any:
    """Take a value from another place. A branch is copied, so that no document holds itself."""
    container, key = chance.random.choice(places)
    value = container[key]
    return json.loads(json.dumps(value)) if isinstance(value, dict | list) and _is_plain(value) else value


def _is_plain(value: Any) -> bool:
    members = value.values() if isinstance(value, dict) else value
    return all(_is_plain(each) if isinstance(each, dict | list) else not isinstance(each, bytes) for each in members)


def _leaf(value: Any, chance: Chance) -> Any:
    match value:
        case bytes():
            return mutate(value, chance)
        case str():
            return mutate(value.encode("utf-8", "replace"), chance).decode("utf-8", "surrogateescape")
        case bool() | None:
            return chance.random.choice(_VALUES)
        case int():
            return chance.random.choice((value + 1, value - 1, -value, value ^ 1, *_NUMBERS))
    return _tree(value, chance)


def _places(root: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) below the root, but of long lists of numbers only a few."""
    found: list[tuple[Any, Any]] = []
    open_containers = [root]
    while open_containers and len(found) < 2000:
        container = open_containers.pop()
        if isinstance(container, dict):
            keys: list[Any] = list(container)
        elif isinstance(container, list):
            keys = list(range(min(len(container), 64)))
        else:
            continue
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], dict | list):
                open_containers.append(container[key])
    return found


def _token(data: bytes, chance: Chance) -> bytes | None:
    segments = data.split(b".")
    at = chance.random.randrange(3)
    try:
        content = base64.urlsafe_b64decode(segments[at] + b"=" * (-len(segments[at]) % 4))
    except binascii.Error:
        return None
    segments[at] = base64.urlsafe_b64encode(mutate(content, chance)).rstrip(b"=")
    return b".".join(segments)


def _pem(data: bytes, chance: Chance) -> bytes | None:
    blocks = list(_PEM.finditer(data))
    if not blocks:
        return None
    block = chance.random.choice(blocks)
    match chance.random.randrange(8):
        case 0:
            return data[: block.start()] + data[block.end() :]
        case 1:
            return data[: block.end()] + b"\n" + block.group() + data[block.end() :]
    try:
        content = mutate(base64.b64decode(block.group(2)), chance)
    except binascii.Error:
        return None
    return data[: block.start(2)] + base64.encodebytes(content) + data[block.end(2) :]


def _quote(data: bytes, chance: Chance) -> bytes | None:
    """Change a TDX quote's fixed part, or its certificate chain, and then the three lengths around the chain."""
    chain = data.find(b"-----BEGIN")
    if chain < 0 or chance.random.random() < 0.5:
        return None
    changed = mutate(data[chain:], chance)
    quote = bytearray(data[:chain] + changed)
    # Four bytes each: of the whole signature data, of the QE certification data, of the chain.
    auth = 48 + (584 if data[0] == 4 else 6 + int.from_bytes(data[50:54], "little"))
    for at in (auth, auth + 4 + 128 + 2, chain - 4):
        length = int.from_bytes(quote[at : at + 4], "little") + len(changed) - (len(data) - chain)
        quote[at : at + 4] = (length % 2**32).to_bytes(4, "little")
    return bytes(quote)


def _compressed(data: bytes, chance: Chance) -> bytes | None:
    try:
        text = zlib.decompressobj(31).decompress(data[len(_COMPRESSED) :], _MAX_INFLATED)
    except zlib.error:
        return None
    return _COMPRESSED + gzip.compress(mutate(text, chance), 1, mtime=0)


def _hex(data: bytes, chance: Chance) -> bytes:
    return mutate(bytes.fromhex(data.decode()), chance).hex().encode()


def _base64(data: bytes, chance: Chance) -> bytes | None:
    try:
        return base64.b64encode(mutate(base64.b64decode(data), chance))
    except binascii.Error:
        return None


def _der(data: bytes, chance: Chance) -> bytes | None:
    return der.mutate(data, chance.random, lambda content: mutate(content, chance))


def _scale(data: bytes, chance: Chance) -> bytes | None:
    return scale.mutate(data, chance.random, lambda content: mutate(content, chance))


# The first form that the bytes may have; a form that then cannot read them leaves them to be scrambled.
_FORMS: tuple[tuple[Callable[[bytes], object], Callable[[bytes, Chance], bytes | None]], ...] = (
    (lambda data: data[:1] in (b"{", b"["), _json),
    (lambda data: data[:1] == b"\x30", _der),
    (lambda data: data[:2] == b"\x00\x00", _scale),
    (lambda data: data[:1] in (b"\x82", b"\x83", b"\x84"), _messagepack),
    (lambda data: data.startswith(_COMPRESSED), _compressed),
    (lambda data: data[4:8] == b"\x81\0\0\0", _quote),
    (lambda data: data.startswith(b"-----BEGIN"), _pem),
    (_TOKEN.fullmatch, _token),
    (_HEX.fullmatch, _hex),
    (_BASE64.fullmatch, _base64),
)
