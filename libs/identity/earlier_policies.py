"""It is responsible for the policy versions before a service's seed: whose operators may have revoked what counts.

A version names the digest of the one before, and so on down, so whoever approved the seed approved all of them. Nothing
else is needed to believe an earlier one, and it decides nothing but who was an operator.
"""

from __future__ import annotations

from pathlib import Path

from libs.files import write_durably
from libs.policy.document import Policy
from libs.policy.succession import verify_predecessor


class EarlierPolicies:
    """The versions before a seed, as far down as they are known, each kept as a file."""

    def __init__(self, folder: Path, seed: Policy) -> None:
        """Walk down through what the folder holds. Raises `PolicyMalformed`, `PolicyVersionNotNext`."""
        self._folder = folder
        self._oldest = seed
        self._signed: dict[int, bytes] = {}
        self.operator_keys: set[bytes] = set()
        while (path := self._path(self._oldest.version - 1)).exists():
            self._take(path.read_bytes())

    @property
    def oldest(self) -> int:
        """The first version that is known."""
        return self._oldest.version

    def add(self, signed: bytes) -> None:
        """Learn the version before the oldest, durably. Raises `PolicyMalformed`, `PolicyVersionNotNext`."""
        self._take(signed)
        write_durably(self._path(self.oldest), signed)

    def signed(self, version: int) -> bytes | None:
        return self._signed.get(version)

    def _take(self, signed: bytes) -> None:
        self._oldest = verify_predecessor(self._oldest, signed)
        self._signed[self._oldest.version] = signed
        self.operator_keys.update(self._oldest.operator_keys)

    def _path(self, version: int) -> Path:
        return self._folder / f"{version}.json"
