"""It is responsible for the file in which a router keeps how many tokens were used, written whole or not at all.

The disk is the host's. One that puts back an older file gives tenants their tokens again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from libs import jcs
from libs.errors import MeshError
from libs.files import remove_drafts, write_durably
from libs.policy.members import Members
from libs.policy.tenant_record import TENANT_ID_BYTES

_VERSION = 1
_TENANT = re.compile(rf"[0-9a-f]{{{2 * TENANT_ID_BYTES}}}")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MONTH = re.compile(r"[0-9]{4}-[0-9]{2}")


class QuotasUnreadable(MeshError):
    """The file is not one of this version; without it, tenants could use what they have used already."""

    reason = "QUOTAS_UNREADABLE"


@dataclass(frozen=True, slots=True)
class Counted:
    """Tokens that one tenant used."""

    day: str
    """In which, UTC: 2026-03-31."""
    day_tokens: int
    month: str
    """In which, UTC: 2026-03."""
    month_tokens: int

    def at(self, day: str, month: str) -> Counted:
        """Return what of it counts on another day: what was used on this one, and in this month."""
        return Counted(
            day,
            self.day_tokens if self.day == day else 0,
            month,
            self.month_tokens if self.month == month else 0,
        )

    def plus(self, tokens: int) -> Counted:
        return replace(self, day_tokens=self.day_tokens + tokens, month_tokens=self.month_tokens + tokens)


class QuotaFile:
    """One file, which one process writes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, Counted]:
        """Return what was kept, nothing of a router that never wrote. Raises `QuotasUnreadable`."""
        remove_drafts(self._path.parent, re.compile(re.escape(self._path.name)))
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise QuotasUnreadable(f"cannot read {self._path}: {error.strerror}") from error
        try:
            members = Members(jcs.loads_object(data), "", QuotasUnreadable)
        except jcs.JsonMalformed as error:
            raise QuotasUnreadable(f"{self._path} is {error}; removing it forgets what tenants used") from error
        members.integer("v", _VERSION, _VERSION)
        tenants = members.object("tenants")
        counted = {name: _read(tenants.object(name)) for name in tenants.names(_TENANT)}
        members.end()
        return counted

    def write(self, counted: dict[str, Counted]) -> None:
        """Replace what is kept. Raises `OSError`."""
        tenants = {
            name: {
                "day": each.day,
                "day_tokens": each.day_tokens,
                "month": each.month,
                "month_tokens": each.month_tokens,
            }
            for name, each in counted.items()
        }
        write_durably(self._path, jcs.dumps({"v": _VERSION, "tenants": tenants}))


def _read(members: Members) -> Counted:
    counted = Counted(
        day=members.text("day", _DAY),
        day_tokens=members.integer("day_tokens", 0),
        month=members.text("month", _MONTH),
        month_tokens=members.integer("month_tokens", 0),
    )
    members.end()
    return counted
