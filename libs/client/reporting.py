"""Responsible for asking a service for its report by a nonce of one's own, noting the TLS key that it came over."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from libs.client.http import Origin, open_http
from libs.errors import Code, MeshError

ACI_PATH = "/v1/aci/attestation"
_NONCE_BYTES = 32


class ConnectionsDisagree(MeshError):
    """The report did not come over exactly one TLS key."""

    code = Code.PERMISSION_DENIED
    reason = "CONNECTIONS_DISAGREE"


@dataclass(frozen=True, slots=True)
class FetchedReport:
    """A report of which nothing is verified yet."""

    report: bytes = field(repr=False)
    nonce: str
    spki_sha256: str
    """SHA-256 (hex) of the TLS key that the connection ended in."""


async def fetch_report(
    origin: Origin,
    ca_pem: bytes | None,
    *,
    path: str = ACI_PATH,
    query: Mapping[str, str] | None = None,
    api_key: str | None = None,
) -> FetchedReport:
    """Fetch a report, sending no secret but an API key if one is given. Raises `ConnectionsDisagree`, and what HTTP
    fails with.
    """
    observed: set[str] = set()
    nonce = secrets.token_hex(_NONCE_BYTES)

    def take_note(spki_sha256: str) -> bool:
        observed.add(spki_sha256)
        return True

    async with open_http(origin, ca_pem, take_note) as unverified:
        report = await unverified.get(path, query={**(query or {}), "nonce": nonce}, api_key=api_key)
    if len(observed) != 1:
        raise ConnectionsDisagree("the report did not come over exactly one TLS key")
    return FetchedReport(report, nonce, next(iter(observed)))
