"""Responsible for the member of a report's evidence that names the TLS key which clients of one host pin (§4.2).

It is there where a keyset lists keys for host names, and of no use elsewhere. Nothing binds it into the quote: it may
narrow what the keyset lists for a host, and never add to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libs.aci.encoding import Members
from libs.aci.keyset import Keyset, TlsKey
from libs.errors import Code, MeshError

MEMBER = "downstream_tls_binding"


class DownstreamBindingMalformed(MeshError):
    """The member is not a host name and the digest of a key."""

    code = Code.INVALID_ARGUMENT
    reason = "DOWNSTREAM_BINDING_MALFORMED"


def binding(keyset: Keyset, host: str) -> dict[str, Any]:
    """Return what a report to clients of this host has in its evidence: nothing where the keyset lists no key for a
    host name, or where it is not known whom the client talks to.
    """
    key = keyset.key_for(host)
    if not host or key is None or all(listed.domain is None for listed in keyset.tls_public_keys):
        return {}
    return {MEMBER: {"domain": host, "spki_sha256": key.spki_sha256}}


def read(evidence: Mapping[str, Any]) -> TlsKey | None:
    """Return the key that a report names, and its host; None where it names none. Raises `DownstreamBindingMalformed`.

    Does not check that the keyset lists it: see `pins`.
    """
    members = Members(evidence, "evidence", DownstreamBindingMalformed)
    if not members.has(MEMBER):
        return None
    named = members.object(MEMBER)
    return TlsKey(named.hex("spki_sha256", 32), named.text("domain"))


def pins(keyset: Keyset, named: TlsKey | None, host: str) -> frozenset[str]:
    """Return the SPKI digests (hex) that a client of this host must pin (§9.1 step 6): the one that the report names,
    if it names one. Empty where that is for another host, or is a key that the keyset does not list for it.
    """
    listed = keyset.pins(host)
    if named is None:
        return listed
    return listed & {named.spki_sha256} if named.domain == host.lower() else frozenset()
