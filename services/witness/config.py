"""What a witness is told at start: who it is, and which logs it looks at by whose keys."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from libs.transparency.note import NoteMalformed, VerifierKey


@dataclass(frozen=True, slots=True)
class AttestedSettings:
    """Whose evidence may bring a log's next checkpoint key."""

    trust_domain: str
    """The mesh's SPIFFE trust domain."""
    operator_keys: tuple[str, ...]
    """Ed25519 public keys of the operators that sign its policy, hexadecimal."""
    operator_threshold: int
    """How many of them must have signed."""
    seed_policy: Path
    """The signed policy to begin with; later versions come from the ledger and must follow from it."""
    mesh_ca: Path | None = None
    """PEM of the mesh CA, where it is known: then its key must be the one that dates the evidence."""

    def __post_init__(self) -> None:
        for key in self.operator_keys:
            if len(bytes.fromhex(key)) != 32:
                raise ValueError("operator_keys are 32 bytes each, hexadecimal")
        if not 1 <= self.operator_threshold <= len(set(self.operator_keys)):
            raise ValueError("operator_threshold is from 1 to the number of operator_keys")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """One log."""

    origin: str
    """The first line of its checkpoints."""
    verifier_keys: tuple[str, ...] = ()
    """Keys that sign its checkpoints, in C2SP's text form."""
    attested: AttestedSettings | None = None
    """For a log of this project, whose key is another one after each restart."""

    def __post_init__(self) -> None:
        if not self.verifier_keys and self.attested is None:
            raise ValueError("verifier_keys or attested must say whose checkpoints count")
        try:
            names = {VerifierKey.parse(key).name for key in self.verifier_keys}
        except NoteMalformed as error:
            raise ValueError(f"verifier_keys: {error}") from error
        if names - {self.origin}:
            raise ValueError("the name in each of verifier_keys is the origin")


@dataclass(frozen=True, slots=True)
class Config:
    """The witness's configuration file."""

    name: str
    """Its name in cosignatures; by custom a URL without a scheme, as witness.example.org/w1."""
    listen: str
    """host:port of the HTTPS listener."""
    certificate: Path
    """PEM of the listener's certificate chain."""
    private_key: Path
    """PEM of its key."""
    state_dir: Path
    """Folder of the witness's own keys and of what it remembers. Neither can be made again."""
    logs: tuple[LogSettings, ...]
    """The logs that it looks at."""
    log_json: bool | None = None
    """True for JSON lines, false for readable ones; absent: readable on a terminal."""

    def __post_init__(self) -> None:
        if len({log.origin for log in self.logs}) != len(self.logs):
            raise ValueError("each origin stands in logs once")
