"""dstack's SCALE attestation as a list of fields: one of them changed, and its stated length with it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from libs.errors import MeshError
from libs.tee.ratls.scale import ScaleReader
from services.devtee.attestation import compact

_MAX_ITEMS = 2000

# What stands before a field: nothing, or its compact length.
_Field = tuple[bool, bytes]


def mutate(data: bytes, random: Random, change: Callable[[bytes], bytes]) -> bytes | None:
    """Return the attestation with one field, or one count, changed; None when it cannot be read."""
    try:
        fields = _fields(ScaleReader(data))
    except MeshError:
        return None
    at = random.randrange(len(fields))
    prefixed, content = fields[at]
    match random.randrange(8):
        case 0:
            del fields[at]
        case 1:
            fields[at:at] = fields[max(0, at - random.randrange(6)) : at + 1]
        case 2:
            fields[at] = (False, content)
        case _:
            fields[at] = (prefixed, change(content))
    return b"".join(compact(len(content)) + content if prefixed else content for prefixed, content in fields)


def _fields(reader: ScaleReader) -> list[_Field]:
    found: list[_Field] = [(False, reader.fixed(2)), (True, reader.vector())]
    for fixed, vectors in ((8, 3), (0, 2)):
        count = reader.compact()
        found.append((False, compact(count % 2**30)))
        for _ in range(min(count, _MAX_ITEMS)):
            if fixed:
                found.append((False, reader.fixed(fixed)))
            found.extend((True, reader.vector()) for _ in range(vectors))
    found.extend(((False, reader.fixed(64)), (True, reader.vector())))
    reader.finish()
    return found
