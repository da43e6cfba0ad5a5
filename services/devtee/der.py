"""Responsible for the few DER values that `cryptography` has no builder for."""

from __future__ import annotations


def sequence(*parts: bytes) -> bytes:
    return _tagged(0x30, b"".join(parts))


def octets(content: bytes) -> bytes:
    return _tagged(0x04, content)


def integer(value: int) -> bytes:
    """A non-negative INTEGER; a leading zero keeps the sign bit clear."""
    return _tagged(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def enumerated(value: int) -> bytes:
    return _tagged(0x0A, bytes([value]))


def boolean(value: bool) -> bytes:
    return _tagged(0x01, b"\xff" if value else b"\x00")


def object_identifier(dotted: str) -> bytes:
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    return _tagged(0x06, b"".join(_base128(arc) for arc in (40 * first + second, *rest)))


def _base128(arc: int) -> bytes:
    groups = [arc & 0x7F]
    while arc := arc >> 7:
        groups.append(0x80 | (arc & 0x7F))
    return bytes(reversed(groups))


def _tagged(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    size = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + content
