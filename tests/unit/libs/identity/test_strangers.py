"""Who is refused is named by what it showed; who is not, is not."""

from __future__ import annotations

import socket
from hashlib import sha256

import pytest
from structlog.testing import capture_logs

from libs.identity.certificate import CertificateNotAccepted
from libs.identity.strangers import name_stranger, named_if_refused
from tests.unit.libs.identity.test_certificate import SPIFFE_ID, Leaf

ADDRESS = "127.0.0.1:9"
REFUSAL = CertificateNotAccepted("certificate is not from this mesh's CA")


@pytest.mark.parametrize(("leaf", "claimed"), [(Leaf().sign(), SPIFFE_ID), (Leaf(uris=()).sign(), None)])
def test_who_is_refused_is_named_by_what_it_showed(leaf: bytes, claimed: str | None) -> None:
    with capture_logs() as logs, pytest.raises(CertificateNotAccepted), named_if_refused(ADDRESS, leaf):
        raise REFUSAL
    assert logs == [
        {
            "event": "refused who answered",
            "log_level": "warning",
            "address": ADDRESS,
            "claims_to_be": claimed,
            "leaf_sha256": sha256(leaf).hexdigest(),
            "reason": "CERTIFICATE_NOT_ACCEPTED",
            "detail": "certificate is not from this mesh's CA",
        }
    ]


def test_who_is_not_refused_is_not_named() -> None:
    with capture_logs() as logs, named_if_refused(ADDRESS, Leaf().sign()):
        pass
    assert logs == []


async def test_who_is_gone_by_the_second_look_is_named_by_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    with capture_logs() as logs:
        await name_stranger(address, "kms.mesh.test", 5, REFUSAL)
    (line,) = logs
    assert (line["address"], line["reason"]) == (address, "CERTIFICATE_NOT_ACCEPTED")
    assert "leaf_sha256" not in line
