"""It is responsible for what a stage's work says of the privacy that it spent: a file that it writes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from libs import jcs
from libs.errors import Code, MeshError
from libs.events.privacy import Privacy, read_privacy
from libs.policy.members import Members

_MAX_BYTES = 4 << 10


class PrivacyNotStated(MeshError):
    """The work was to say what privacy it spent, and did not, or not in the form of a stage."""

    code = Code.FAILED_PRECONDITION
    reason = "PRIVACY_NOT_STATED"


async def read_stated(path: Path) -> Privacy:
    """Read the JSON object that a stage's member "privacy" is to be. Raises `PrivacyNotStated`."""
    try:
        value = jcs.loads_object(await asyncio.to_thread(_read, path))
    except (OSError, jcs.JsonMalformed) as error:
        raise PrivacyNotStated(f"{path} cannot be read: {error}") from error
    return read_privacy(Members(value, "privacy", PrivacyNotStated))


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_BYTES)
