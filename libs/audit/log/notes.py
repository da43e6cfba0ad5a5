"""It is responsible for C2SP signed notes that are checkpoints: read strictly, verified under keys that are known.

Written from https://c2sp.org/signed-note and https://c2sp.org/tlog-checkpoint.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from libs.errors import Code, MeshError

_ED25519 = b"\x01"
_MAX_BYTES = 1 << 20
_MAX_LINES = 100


class NoteUnreadable(MeshError):
    """The bytes are no checkpoint, or the text is no verifier key."""

    code = Code.INVALID_ARGUMENT
    reason = "NOTE_UNREADABLE"


class NoteUnproven(MeshError):
    """No known key's signature stands under the note, or a known key's is wrong."""

    code = Code.PERMISSION_DENIED
    reason = "NOTE_UNPROVEN"


@dataclass(frozen=True, slots=True)
class Key:
    """A log's named Ed25519 key."""

    name: str
    public: bytes

    @property
    def id(self) -> bytes:
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.public).digest()[:4]

    def text(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(_ED25519 + self.public).decode()}"

    @classmethod
    def read(cls, text: str) -> Key:
        """Read C2SP's text form, `name+hash+base64`. Raises `NoteUnreadable`."""
        name, _, rest = text.partition("+")
        _, _, encoded = rest.partition("+")
        blob = _decoded(encoded)
        if not name or len(blob) != 33 or blob[:1] != _ED25519:
            raise NoteUnreadable("a verifier key is name+hash+base64 of an Ed25519 key")
        key = cls(name, blob[1:])
        if key.text() != text:
            raise NoteUnreadable("the verifier key's hash is not its own")
        return key


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head as a note states it. Nothing is proven until `verify` returned a key."""

    origin: str
    size: int
    root: bytes
    text: str
    signatures: tuple[tuple[str, bytes, bytes], ...]
    """Of each line the key's name, its id, and the signature."""
    note: bytes

    def verify(self, keys: Iterable[Key]) -> Key:
        """Return the key of the log's that signed. Raises `NoteUnproven`."""
        known = {(key.name, key.id): key for key in keys if key.name == self.origin}
        proven = None
        for name, key_id, signature in self.signatures:
            key = known.get((name, key_id))
            if key is None:
                continue
            try:
                Ed25519PublicKey.from_public_bytes(key.public).verify(signature, self.text.encode())
            except (InvalidSignature, ValueError) as error:
                raise NoteUnproven(f"the signature of {self.origin} under {self.size} leaves is wrong") from error
            proven = key
        if proven is None:
            raise NoteUnproven(f"no known key of {self.origin} signed the tree of {self.size} leaves")
        return proven


def read_checkpoint(note: bytes) -> Checkpoint:
    """Read a note strictly. Raises `NoteUnreadable`."""
    if len(note) > _MAX_BYTES:
        raise NoteUnreadable("the note is too large")
    try:
        content = note.decode()
    except UnicodeDecodeError as error:
        raise NoteUnreadable("the note is not UTF-8") from error
    if any(letter < " " and letter != "\n" for letter in content):
        raise NoteUnreadable("the note has control characters")
    lines = content.split("\n")
    if len(lines) < 6 or lines[3] or lines[-1] or not lines[0] or len(lines) - 5 > _MAX_LINES:
        raise NoteUnreadable("a checkpoint is three lines, an empty one, and signatures")
    origin, size, root = lines[0], lines[1], _decoded(lines[2])
    if not (size.isascii() and size.isdigit()) or len(size) > 20 or str(int(size)) != size or len(root) != 32:
        raise NoteUnreadable("a checkpoint's second line is a size, its third the root's base64")
    signatures = tuple(_signature(line) for line in lines[4:-1])
    return Checkpoint(origin, int(size), root, "\n".join(lines[:3]) + "\n", signatures, note)


def _signature(line: str) -> tuple[str, bytes, bytes]:
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != "\N{EM DASH}" or not parts[1]:
        raise NoteUnreadable("a signature line is a dash, a name, and base64")
    blob = _decoded(parts[2])
    if len(blob) < 5:
        raise NoteUnreadable("a signature line ends in a key id and a signature")
    return parts[1], blob[:4], blob[4:]


def _decoded(text: str) -> bytes:
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise NoteUnreadable("not standard base64") from error
    if base64.b64encode(data).decode() != text:
        raise NoteUnreadable("not the one base64 form of its bytes")
    return data
