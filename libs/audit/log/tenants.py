"""It is responsible for one tenant's numbers: with its tag key a tenant finds its leaves, and any that is missing."""

from __future__ import annotations

import hmac

from libs.errors import Code, MeshError

TAG_KEY_SIZE = 32
_PUBLIC_TAG_KEY = bytes(TAG_KEY_SIZE)
_WINDOW = 1 << 16
"""So many numbers ahead are known by their tags: of a hole that is larger, what follows looks like another tenant's."""


class TagKeyUnreadable(MeshError):
    """The file holds no tag key."""

    code = Code.INVALID_ARGUMENT
    reason = "TAG_KEY_UNREADABLE"


def tag_of(key: bytes, number: int) -> bytes:
    """Return the 16 bytes that mark a vault's entry of this number."""
    return hmac.digest(key, b"teemesh/tag/v1\x00" + number.to_bytes(8, "big"), "sha256")[:16]


class PublicVault:
    """Follows the numbers of the public vault, whose tag key everybody knows."""

    def __init__(self) -> None:
        self._last = 0

    def add(self, tag: bytes) -> bool:
        """Take in the next leaf of the vault. Returns False where it does not have the next number."""
        self._last += 1
        return hmac.compare_digest(tag, tag_of(_PUBLIC_TAG_KEY, self._last))


class TenantVault:
    """Follows one tenant's numbers by their tags. The log gives them in order, each on one leaf."""

    def __init__(self, key: bytes) -> None:
        if len(key) != TAG_KEY_SIZE:
            raise TagKeyUnreadable(f"a tag key has {TAG_KEY_SIZE} bytes")
        self._key = key
        self._numbers: dict[bytes, int] = {}
        """By tag: numbers that were seen, and a window of those that may come."""
        self._vault_id: bytes | None = None
        self.last = 0
        self.is_whole = True
        """Whether nothing was wrong with any leaf so far."""
        self._extend()

    def add(self, tag: bytes, vault_id: bytes | None) -> str | None:
        """Take in one leaf, of whichever tenant; without a vault's id where only leaves are known.

        Returns what is wrong with it.
        """
        wrong = self._take(tag, vault_id)
        self.is_whole = self.is_whole and wrong is None
        return wrong

    def _take(self, tag: bytes, vault_id: bytes | None) -> str | None:
        number = self._numbers.get(tag)
        is_own = vault_id is not None and vault_id == self._vault_id
        if number is None:
            return f"an entry of the vault is not its number {self.last + 1}" if is_own else None
        if self._vault_id is None:
            self._vault_id = vault_id
        elif not is_own:
            return f"number {number} of the tenant's lies in another vault"
        if number <= self.last:
            return f"number {number} of the vault comes after number {self.last}"
        before, self.last = self.last, number
        self._extend()
        if number > before + 1:
            return f"numbers {before + 1} to {number - 1} of the vault are on no leaf before number {number}"
        return None

    def _extend(self) -> None:
        known = len(self._numbers)
        if known < self.last + _WINDOW // 2:
            self._numbers.update((tag_of(self._key, number), number) for number in range(known + 1, known + _WINDOW))
