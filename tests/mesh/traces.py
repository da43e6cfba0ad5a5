"""What is left of a text in files, in whichever of the usual forms a program may have written it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

_PIECE = 24
"""Characters in a row: fewer occur by chance."""
_PIECES = 4


def holders(places: Iterable[Path], texts: Mapping[str, str]) -> Mapping[str, set[str]]:
    """The files below these places that hold one of the texts, in any form, and the names of those texts.

    What vanishes meanwhile was not left behind.
    """
    wanted = [(name, form) for name, text in texts.items() for form in forms(text)]
    found = {}
    for path in _files(places):
        try:
            content = path.read_bytes()
        except (FileNotFoundError, PermissionError):
            continue
        if held := {name for name, form in wanted if form in content}:
            found[str(path)] = held
    return found


def forms(text: str) -> frozenset[bytes]:
    """Its bytes, as JSON has them, in hexadecimal, and in base64 wherever in other text it stands."""
    raw = text.encode()
    written = {raw, *(json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode() for ascii_only in (True, False))}
    for data in tuple(written):
        written |= {data.hex().encode(), data.hex().upper().encode()}
        for before in range(3):
            encoded = base64.b64encode(bytes(before) + data)
            # What the neighbours have a part in is left out.
            whole = encoded[-(-before * 4 // 3) : (before + len(data)) // 3 * 4]
            written |= {whole, whole.translate(bytes.maketrans(b"+/", b"-_"))}
    return frozenset(written)


def pieces(said: str) -> list[str]:
    """A few pieces of what a model said, from its beginning, each long enough to be nobody else's."""
    assert len(said) >= _PIECE, said
    starts = range(0, len(said) - _PIECE + 1, _PIECE // 2)
    return [said[start : start + _PIECE] for start in starts[:_PIECES]]


def _files(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        for path in place.rglob("*"):
            if path.is_file() and not path.is_symlink():
                yield path
