"""It is responsible for which workload may use which key of the KMS, and how.

A rule is about one key, or about everything below a name with a trailing "/*". No two rules are about the same key, so
what a rule says is all there is. Boot-class keys are the ledger's alone: the KMS releases them before it can read its
own log, so no policy may give them to anyone else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from libs.policy.members import Members
from libs.policy.vocabulary import ROLE

_SEGMENT = r"[a-z0-9][a-z0-9._-]*"
_MAX_NAME = r"(?=.{1,128}\Z)"
KEY_NAME = re.compile(rf"{_MAX_NAME}{_SEGMENT}(/{_SEGMENT})*")
"""A key's name: lower-case segments between slashes, no wildcard."""

_KEY_PATTERN = re.compile(rf"{KEY_NAME.pattern}(/\*)?")
_BOOT_CLASS = frozenset({"ledger-keyring", "ledger-resume", "ledger-vault"})
_LEDGER_ALONE = frozenset({"ledger"})
_MAX_DAYS = 3650


class KeyAlgorithm(StrEnum):
    """What a key of the KMS is for: a key has one algorithm for all its epochs."""

    AES_256 = "aes-256"
    """32 bytes, for AES-256 or HMAC."""
    X25519 = "x25519"
    """RFC 7748; what is sealed to its public half, its holder opens."""
    ED25519 = "ed25519"
    """RFC 8032."""
    P_256 = "p-256"
    """ECDSA with SHA-256 (FIPS 186-5)."""

    @property
    def number(self) -> int:
        """Its number on the wire."""
        return list(KeyAlgorithm).index(self) + 1

    @property
    def signs(self) -> bool:
        return self in (KeyAlgorithm.ED25519, KeyAlgorithm.P_256)

    @property
    def has_public_key(self) -> bool:
        return self is not KeyAlgorithm.AES_256


_ALGORITHM = re.compile("|".join(KeyAlgorithm))
_USE = re.compile("hold|sign")


@dataclass(frozen=True, slots=True)
class KeyRelease:
    """One rule: who may use what the pattern covers."""

    pattern: str
    roles: frozenset[str]
    algorithm: KeyAlgorithm = KeyAlgorithm.AES_256
    held: bool = True
    """Whether the key may leave the KMS, sealed to its user; if not, the KMS signs with it on the user's behalf."""
    rotate_after_days: int | None = None
    """The age at which the newest epoch is followed by the next; None: by command only."""
    compose_hashes: frozenset[str] | None = None
    """Where not None: only workloads of these app-composes, SHA-256 in hexadecimal. It narrows the roles."""

    def covers(self, name: str) -> bool:
        """Say whether the rule is about this key. A wildcard covers what is below it, at any depth, not itself."""
        is_below = self.pattern.endswith("/*") and name.startswith(self.pattern[:-1])
        # Last, because it takes longest: the KMS asks this of ten thousand names in a row.
        return (is_below or name == self.pattern) and KEY_NAME.fullmatch(name) is not None

    def admits(self, role: str, compose_hash: str) -> bool:
        """Say whether a workload of this role and measured app-compose may use the key."""
        return role in self.roles and (self.compose_hashes is None or compose_hash in self.compose_hashes)


def cache_salt_key(compose_hash: str) -> str:
    """Return the name of the key from which nodes with this measured app-compose make the salts of their prefix cache.

    One name for each measurement, so that a rule with its `compose_hashes` lets no other have it.
    """
    return f"cache-salt/{compose_hash}"


def is_boot_class(name: str) -> bool:
    """Say whether a key (or a pattern of keys) is released before the KMS has read the log, to the ledger alone."""
    return name.split("/", 1)[0] in _BOOT_CLASS


def read_key_releases(members: Members) -> tuple[KeyRelease, ...]:
    """Read the member "key_releases" of a policy. Raises the reader's refusal. The list may be empty."""
    releases: list[KeyRelease] = []
    for entry in members.objects("key_releases"):
        release = _read(entry)
        for other in releases:
            if _overlap(release.pattern, other.pattern):
                raise entry.refuse("name", f"is about the same keys as {other.pattern}: one rule must decide")
        releases.append(release)
    return tuple(releases)


def _read(entry: Members) -> KeyRelease:
    release = KeyRelease(
        pattern=entry.text("name", _KEY_PATTERN),
        roles=frozenset(entry.texts("roles", ROLE)),
        algorithm=KeyAlgorithm(entry.text("algorithm", _ALGORITHM)) if entry.has("algorithm") else KeyAlgorithm.AES_256,
        held=entry.text("use", _USE) == "hold" if entry.has("use") else True,
        rotate_after_days=entry.integer("rotate_after_days", 1, _MAX_DAYS) if entry.has("rotate_after_days") else None,
        compose_hashes=frozenset(entry.hexadecimals("compose_hashes", 32)) if entry.has("compose_hashes") else None,
    )
    entry.end()
    if not release.held and not release.algorithm.signs:
        raise entry.refuse("use", f"must be hold: the KMS signs with no {release.algorithm} key")
    if is_boot_class(release.pattern):
        if release.roles != _LEDGER_ALONE:
            raise entry.refuse("roles", 'must be ["ledger"]: the key is of the boot class')
        if (release.algorithm, release.rotate_after_days) != (KeyAlgorithm.AES_256, None):
            raise entry.refuse("name", "is of the boot class: its algorithm and its epochs are fixed")
    return release


def _overlap(one: str, other: str) -> bool:
    def below(name: str, pattern: str) -> bool:
        return pattern.endswith("/*") and name.startswith(pattern[:-1])

    return one == other or below(one, other) or below(other, one)
