"""It is responsible for which role may hold which key of the KMS.

A rule names one key, or everything below a name with a trailing "/*". Boot-class keys are the ledger's alone: the KMS
releases them before it can read its own log, so no policy may give them to anyone else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from libs.policy.members import Members
from libs.policy.vocabulary import ROLE

_SEGMENT = r"[a-z0-9][a-z0-9._-]*"
_MAX_NAME = r"(?=.{1,128}\Z)"
KEY_NAME = re.compile(rf"{_MAX_NAME}{_SEGMENT}(/{_SEGMENT})*")
"""A key's name: lower-case segments between slashes, no wildcard."""

_KEY_PATTERN = re.compile(rf"{KEY_NAME.pattern}(/\*)?")
_BOOT_CLASS = frozenset({"ledger-keyring", "ledger-resume", "ledger-vault"})
_LEDGER_ALONE = frozenset({"ledger"})


@dataclass(frozen=True, slots=True)
class KeyRelease:
    """One rule: the roles that may hold what the pattern covers."""

    pattern: str
    roles: frozenset[str]

    def covers(self, name: str) -> bool:
        """Say whether the rule is about this key. A wildcard covers what is below it, at any depth, not itself."""
        if not KEY_NAME.fullmatch(name):
            return False
        if self.pattern.endswith("/*"):
            return name.startswith(self.pattern[:-1])
        return name == self.pattern


def is_boot_class(name: str) -> bool:
    """Say whether a key (or a pattern of keys) is released before the KMS has read the log, to the ledger alone."""
    return name.split("/", 1)[0] in _BOOT_CLASS


def read_key_releases(members: Members) -> tuple[KeyRelease, ...]:
    """Read the member "key_releases" of a policy. Raises the reader's refusal. The list may be empty."""
    releases = []
    for entry in members.objects("key_releases"):
        release = KeyRelease(entry.text("name", _KEY_PATTERN), frozenset(entry.texts("roles", ROLE)))
        entry.end()
        if is_boot_class(release.pattern) and release.roles != _LEDGER_ALONE:
            raise entry.refuse("roles", 'must be ["ledger"]: the key is of the boot class')
        releases.append(release)
    members.distinct([release.pattern for release in releases], "key_releases")
    return tuple(releases)
