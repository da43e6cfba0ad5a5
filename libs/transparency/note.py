"""C2SP signed notes: text that Ed25519 keys (signature type 0x01) vouch for.

Follows https://c2sp.org/signed-note. Signatures by keys nobody here knows are skipped; a bad one by a known key rejects
the note.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs.errors import Code, MeshError

_ED25519 = b"\x01"
_MAX_SIGNATURES = 100
_MAX_SIZE = 1 << 20
_SEPARATOR = "\n\n"
_LINE_START = "\N{EM DASH} "


class NoteMalformed(MeshError):
    """The bytes are not a signed note, or the text is not a verifier key."""

    code = Code.INVALID_ARGUMENT
    reason = "NOTE_MALFORMED"


class NoteSignatureInvalid(MeshError):
    """The note is not signed by the key that must have signed it."""

    code = Code.PERMISSION_DENIED
    reason = "NOTE_SIGNATURE_INVALID"


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A named Ed25519 key."""

    name: str
    public_key: bytes

    def __post_init__(self) -> None:
        _check_name(self.name)
        if len(self.public_key) != 32:
            raise NoteMalformed("an Ed25519 public key has 32 bytes")

    @property
    def key_id(self) -> bytes:
        """The 4 bytes that name the key in a signature line."""
        return key_id_of(self.name, _ED25519 + self.public_key)

    def text(self) -> str:
        """Return the key in its text form, `name+hash+base64`."""
        return key_text(self.name, _ED25519 + self.public_key)

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Read the text form. Raises `NoteMalformed`."""
        name, key = parse_key(text)
        if key[:1] != _ED25519:
            raise NoteMalformed("only Ed25519 keys are known")
        return cls(name, key[1:])


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line, not yet verified."""

    name: str
    key_id: bytes
    signature: bytes

    def line(self) -> str:
        """Return the line, its newline included."""
        return f"{_LINE_START}{self.name} {base64.b64encode(self.key_id + self.signature).decode()}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A note as it was read: nothing in it is proven."""

    text: str
    signatures: tuple[Signature, ...]


def key_id_of(name: str, typed_key: bytes) -> bytes:
    """Return the 4 bytes that name a key in a signature line. `typed_key` is the signature type's byte and the key."""
    return sha256(name.encode() + b"\n" + typed_key).digest()[:4]


def key_text(name: str, typed_key: bytes) -> str:
    """Return the text form of a verifier key of any signature type."""
    return f"{name}+{key_id_of(name, typed_key).hex()}+{base64.b64encode(typed_key).decode()}"


def parse_key(text: str) -> tuple[str, bytes]:
    """Return the name in a verifier key's text form, and the typed key. Raises `NoteMalformed`."""
    name, _, rest = text.partition("+")
    key_id, _, encoded = rest.partition("+")
    typed_key = _base64(encoded)
    _check_name(name)
    if key_id_of(name, typed_key).hex() != key_id:
        raise NoteMalformed("the key's hash is not its own")
    return name, typed_key


def sign(text: str, name: str, key: Ed25519PrivateKey) -> bytes:
    """Return the note of a text with one signature. Raises `NoteMalformed` for a text that no note can carry."""
    _check_text(text)
    signature = Signature(name, VerifierKey(name, key.public_key().public_bytes_raw()).key_id, key.sign(text.encode()))
    return f"{text}\n{signature.line()}".encode()


def parse(note: bytes) -> Note:
    """Read a note strictly, without verifying it. Raises `NoteMalformed`."""
    if len(note) > _MAX_SIZE:
        raise NoteMalformed("the note is larger than 1 MiB")
    try:
        content = note.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NoteMalformed("the note is not UTF-8") from error
    body, separator, lines = content.rpartition(_SEPARATOR)
    if not separator or not lines.endswith("\n"):
        raise NoteMalformed("the note has no signatures, or does not end its last line")
    text = body + "\n"
    _check_text(text)
    signatures = tuple(_parse_line(line) for line in lines[:-1].split("\n"))
    if len(signatures) > _MAX_SIGNATURES:
        raise NoteMalformed(f"the note has more than {_MAX_SIGNATURES} signatures")
    return Note(text, signatures)


def parse_lines(lines: bytes) -> tuple[Signature, ...]:
    """Read signature lines that stand alone, as witnesses answer with. Raises `NoteMalformed`."""
    # Behind any text they are a note.
    return parse(b"\n\n" + lines).signatures


def verify(note: bytes, key: VerifierKey) -> str:
    """Return the text that `key` signed. Raises `NoteMalformed` or `NoteSignatureInvalid`."""
    parsed = parse(note)
    own = [line for line in parsed.signatures if line.name == key.name and line.key_id == key.key_id]
    if not own:
        raise NoteSignatureInvalid(f"the note has no signature by {key.name}")
    public_key = Ed25519PublicKey.from_public_bytes(key.public_key)
    for line in own:
        try:
            public_key.verify(line.signature, parsed.text.encode())
        except InvalidSignature as error:
            raise NoteSignatureInvalid(f"the signature by {key.name} is wrong") from error
    return parsed.text


def _check_name(name: str) -> None:
    if not name or "+" in name or any(letter.isspace() or letter < " " for letter in name):
        raise NoteMalformed("a key's name is not empty and has no spaces and no plus sign")


def _check_text(text: str) -> None:
    if not text.endswith("\n") or any(letter < " " and letter != "\n" for letter in text):
        raise NoteMalformed("a note's text ends in a newline and has no other control characters")


def _parse_line(line: str) -> Signature:
    if not line.startswith(_LINE_START):
        raise NoteMalformed("a signature line starts with a dash")
    name, separator, encoded = line[len(_LINE_START) :].partition(" ")
    _check_name(name)
    blob = _base64(encoded)
    if not separator or len(blob) < 5:
        raise NoteMalformed("a signature line ends in a key id and a signature")
    return Signature(name, blob[:4], blob[4:])


def _base64(text: str) -> bytes:
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise NoteMalformed("not standard base64") from error
    if base64.b64encode(data).decode() != text:
        raise NoteMalformed("not the one base64 form of its bytes")
    return data
