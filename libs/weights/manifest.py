"""Responsible for the manifest of a model's files: what each is called, how long it is, and its SHA-256.

Canonical JSON (RFC 8785), `{"files":[{"name","sha256","size"}, ...]}`, in order of the names. Its SHA-256 is the
model's weights digest: what policy lists, evidence claims and receipts name.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from libs import jcs
from libs.errors import Code, MeshError

MOST_FILES = 10_000
"""The largest models are in some hundred."""
MAX_BYTES = 4 << 20
_MEMBERS = {"name", "sha256", "size"}
_NAMED = 5
"""So many files are named in an error."""


class ManifestMalformed(MeshError):
    """The document is not a manifest of weights."""

    code = Code.INVALID_ARGUMENT
    reason = "WEIGHTS_MANIFEST_MALFORMED"


class WeightsDiffer(MeshError):
    """The files are not those of the manifest."""

    code = Code.FAILED_PRECONDITION
    reason = "WEIGHTS_DIFFER"


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """One file of a model."""

    name: str
    """Path below the model's folder, with "/"; of a single file its name."""
    sha256: bytes
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Manifest:
    """A model's files."""

    files: tuple[WeightsFile, ...]
    """In order of their names, none twice."""

    @cached_property
    def document(self) -> bytes:
        """Canonical JSON."""
        return jcs.dumps(
            {"files": [{"name": file.name, "sha256": file.sha256.hex(), "size": file.size} for file in self.files]}
        )

    @property
    def digest(self) -> bytes:
        """Names the weights."""
        return hashlib.sha256(self.document).digest()


def read_manifest(document: bytes) -> Manifest:
    """Read a manifest as it was written, to the byte but for a newline at its end. Raises `ManifestMalformed`."""
    if len(document) > MAX_BYTES:
        raise ManifestMalformed(f"a manifest has at most {MAX_BYTES} bytes")
    try:
        value = jcs.loads_object(document)
        manifest = Manifest(tuple(_file(each) for each in value["files"]))
    except (jcs.JsonMalformed, KeyError, TypeError, ValueError) as error:
        raise ManifestMalformed("the document is not a manifest of weights") from error
    # It has one form: what else is in the document would be in no digest.
    if manifest.document != document.rstrip(b"\n"):
        raise ManifestMalformed("the manifest is not in its canonical form")
    names = [file.name for file in manifest.files]
    if not names or sorted(set(names)) != names or len(names) > MOST_FILES:
        raise ManifestMalformed(f"a manifest lists 1 to {MOST_FILES} files, in order of their names")
    return manifest


def require_same(expected: Manifest, found: Manifest) -> None:
    """Raise `WeightsDiffer`, naming the files that are missing, more, or of other content."""
    listed, there = ({file.name: file for file in manifest.files} for manifest in (expected, found))
    wrong = [
        f"{name} {_difference(listed.get(name), there.get(name))}"
        for name in sorted(listed.keys() | there.keys())
        if listed.get(name) != there.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise WeightsDiffer(f"not the weights of the manifest: {'; '.join(wrong[:_NAMED])}{more}")


def _difference(listed: WeightsFile | None, there: WeightsFile | None) -> str:
    if there is None:
        return "is missing"
    if listed is None:
        return "is not listed"
    if listed.size != there.size:
        return f"has {there.size} bytes and not {listed.size}"
    return f"has SHA-256 {there.sha256.hex()} and not {listed.sha256.hex()}"


def _file(value: object) -> WeightsFile:
    if not isinstance(value, dict) or value.keys() != _MEMBERS:
        raise ValueError
    name, digest, size = value["name"], value["sha256"], value["size"]
    if not isinstance(name, str) or not isinstance(digest, str) or not isinstance(size, int) or size < 0:
        raise ValueError
    sha256 = bytes.fromhex(digest)
    # A name that left the folder would have others' files opened, or written.
    if not all(part not in ("", ".", "..") and "\0" not in part for part in name.split("/")) or len(sha256) != 32:
        raise ValueError
    return WeightsFile(name, sha256, size)
