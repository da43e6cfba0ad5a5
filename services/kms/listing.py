"""It is responsible for the list of keys that operators see. Nothing in it is secret."""

from __future__ import annotations

from dataclasses import dataclass

from libs.errors import Code, MeshError
from libs.identity.freshness import PolicyKeeper
from libs.policy.releases import KeyRelease
from services.kms.book import KeyBook
from services.kms.currency import Currency
from services.kms.pages import Page

_MAX_PAGE = 1000


class PageTooLarge(MeshError):
    """A page of a list has at most 1,000 entries."""

    code = Code.INVALID_ARGUMENT
    reason = "PAGE_TOO_LARGE"


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key that has had an epoch begun, and the rule about it in force."""

    name: str
    page: Page
    rule: KeyRelease | None


@dataclass(frozen=True, slots=True)
class ListedKeys:
    """A stretch of the list."""

    keys: tuple[ListedKey, ...]
    next_after: str
    """Where the next one begins; empty after the last."""


class Listing:
    """The keys in order of their names."""

    def __init__(self, book: KeyBook, policy: PolicyKeeper, currency: Currency) -> None:
        self._book = book
        self._policy = policy
        self._currency = currency

    def page(self, after: str, size: int) -> ListedKeys:
        """Return at most `size` keys whose names follow `after`, 0 meaning 1,000. Raises `KeyStateBehind`,
        `PageTooLarge`.
        """
        self._currency.require()
        if size > _MAX_PAGE:
            raise PageTooLarge(f"a page has at most {_MAX_PAGE} keys")
        names = sorted(name for name in self._book.pages.keys if name > after)
        shown = names[: size or _MAX_PAGE]
        policy = self._policy.current
        keys = tuple(ListedKey(name, self._book.pages.keys[name], policy.key_release(name)) for name in shown)
        return ListedKeys(keys, shown[-1] if len(shown) < len(names) else "")
