from __future__ import annotations

from pathlib import Path

from services.cli.ledger.command import LedgerAccess
from services.cli.mesh.kms_access import KmsAccess
from services.cli.mesh.service_access import ServiceAccess


def test_what_an_operator_reaches_a_service_with_does_not_show_the_key() -> None:
    access = ServiceAccess("kms", "127.0.0.1:1", "mesh.test", b"ca", b"certificate", key_pem=b"secret")
    for text in (repr(access), repr(KmsAccess((access,))), repr(LedgerAccess(access, Path("tail.json")))):
        assert "certificate" in text
        assert "secret" not in text
