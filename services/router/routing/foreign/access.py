"""It is responsible for what the router's own configuration says of foreign providers: keys and authorities, by name.

Policy says who may get prompts and what they must prove; none of that is here. A provider that policy lists needs no
entry here, and an entry for one that policy does not list does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from libs.errors import Code, MeshError

_MAX_KEY_CHARACTERS = 512


class ForeignAccessUnreadable(MeshError):
    """A file that the configuration names for a foreign provider cannot be used."""

    code = Code.INVALID_ARGUMENT
    reason = "FOREIGN_ACCESS_UNREADABLE"


@dataclass(frozen=True, slots=True)
class ForeignAccess:
    """One entry of the TOML table [foreign], under the provider's name in policy."""

    api_key_file: Path | None = None
    """File with the API key that this router shows to the provider. Absent: it shows none."""
    ca_file: Path | None = None
    """PEM file with the authorities that may vouch for the provider's host name. Absent: the system's."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the files hold. The key goes over connections to that provider alone, never into a log."""

    api_key: str | None = field(default=None, repr=False)
    ca_pem: bytes | None = None


def read_credentials(access: Mapping[str, ForeignAccess]) -> Mapping[str, Credentials]:
    """Read all files. Raises `ForeignAccessUnreadable`, which names the file and nothing in it."""
    return {name: Credentials(_api_key(entry.api_key_file), _bytes(entry.ca_file)) for name, entry in access.items()}


def _api_key(path: Path | None) -> str | None:
    data = _bytes(path)
    if data is None:
        return None
    key = data.strip()
    if not 0 < len(key) <= _MAX_KEY_CHARACTERS or not all(0x20 < octet < 0x7F for octet in key):
        raise ForeignAccessUnreadable(f"{path} does not hold one API key")
    return key.decode("ascii")


def _bytes(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ForeignAccessUnreadable(f"cannot read {path}: {error.strerror}") from error
