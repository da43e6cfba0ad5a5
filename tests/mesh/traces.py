"""What is left of a text in files, in whichever of the usual forms a program may have written it."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

_PIECE = 24
"""Characters in a row: fewer occur by chance."""
_PIECES = 4
_BLOCK = 6


def holders(files: Iterable[Path], texts: Mapping[str, str]) -> Mapping[str, set[str]]:
    """The files that hold one of the texts, in any form, and the names of those texts.

    What vanishes meanwhile was not left behind.
    """
    wanted = [(name, form) for name, text in texts.items() for form in forms(text)]
    blocks: dict[bytes, list[tuple[str, bytes]]] = {}
    for name, form in wanted:
        assert len(form) >= 2 * _BLOCK - 1, form
        for start in range(_BLOCK):
            blocks.setdefault(form[start : start + _BLOCK], []).append((name, form))
    found = {}
    for path in files:
        try:
            content = path.read_bytes()
        except (FileNotFoundError, PermissionError):
            continue
        # Wherever a form stands, one of its blocks stands at a multiple of their length.
        near = {content[at : at + _BLOCK] for at in range(0, len(content), _BLOCK)} & blocks.keys()
        if held := {name for block in near for name, form in blocks[block] if form in content}:
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


def files_below(place: Path, since: float = 0.0) -> Iterator[Path]:
    """The files that were written since then (Unix time)."""
    for path in place.rglob("*"):
        with suppress(FileNotFoundError):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_mtime >= since:
                yield path
