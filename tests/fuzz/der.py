"""DER as a tree: one element changed, removed, repeated or retagged, and every length around it repaired."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

_CONSTRUCTED = 0x20
_OCTET_STRING = 0x04
_MAX_ELEMENTS = 2000
_TAGS = (0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0A, 0x0C, 0x13, 0x16, 0x17, 0x18, 0x30, 0x31, 0x80, 0xA0, 0xA3)


@dataclass(slots=True)
class _Element:
    tag: int
    content: bytes
    # Of a constructed element, or of an OCTET STRING that holds DER itself.
    inner: list[_Element] | None

    def encode(self) -> bytes:
        content = self.content if self.inner is None else b"".join(element.encode() for element in self.inner)
        return bytes([self.tag]) + _length(len(content)) + content


def mutate(data: bytes, random: Random, change: Callable[[bytes], bytes]) -> bytes | None:
    """Return the DER with one element changed; None when it is none. `change` is for contents."""
    root = _elements(data)
    if root is None:
        return None
    places = _places(root)
    # Half of the time where most of the bytes are, which is where the evidence is.
    weights = [1 + len(siblings[at].content) for siblings, at in places] if random.random() < 0.5 else None
    ((siblings, at),) = random.choices(places, weights)
    element = siblings[at]
    match random.randrange(8):
        case 0:
            del siblings[at]
        case 1:
            siblings.insert(at, element)
        case 2:
            element.tag = random.choice(_TAGS)
        case 3:
            others, other = random.choice(places)
            siblings[at] = _Element(others[other].tag, others[other].encode()[2:], None)
        case _ if element.inner is None:
            siblings[at] = _Element(element.tag, change(element.content), None)
        case _:
            siblings[at] = _Element(element.tag, change(b"".join(each.encode() for each in element.inner)), None)
    return b"".join(each.encode() for each in root)


def _places(elements: list[_Element]) -> list[tuple[list[_Element], int]]:
    found: list[tuple[list[_Element], int]] = []
    left = [elements]
    while left:
        siblings = left.pop()
        found.extend((siblings, at) for at in range(len(siblings)))
        left.extend(element.inner for element in siblings if element.inner)
    return found


def _elements(data: bytes, depth: int = 0) -> list[_Element] | None:
    """Return what the data is a sequence of; None when it is not DER to its last byte."""
    found: list[_Element] = []
    at = 0
    while at < len(data):
        if len(data) - at < 2 or data[at] & 0x1F == 0x1F or len(found) > _MAX_ELEMENTS or depth > 16:
            return None
        tag, size, start = data[at], data[at + 1], at + 2
        if size >= 0x80:
            size_bytes = size & 0x7F
            start += size_bytes
            size = int.from_bytes(data[at + 2 : start], "big")
        at = start + size
        if at > len(data):
            return None
        content = data[start:at]
        holds = tag & _CONSTRUCTED or (tag == _OCTET_STRING and content[:1] in (b"\x30", b"\x04"))
        found.append(_Element(tag, content, _elements(content, depth + 1) if holds else None))
    return found or None


def _length(size: int) -> bytes:
    if size < 0x80:
        return bytes([size])
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(octets)]) + octets
