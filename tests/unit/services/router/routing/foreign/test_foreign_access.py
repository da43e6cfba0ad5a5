"""Keys and authorities for foreign providers come from files, and are shown to nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.router.routing.foreign.access import Credentials, ForeignAccess, ForeignAccessUnreadable, read_credentials


def test_files_are_read_by_the_providers_name(tmp_path: Path) -> None:
    key, authorities = tmp_path / "key", tmp_path / "ca.pem"
    key.write_bytes(b"sk-secret\n")
    authorities.write_bytes(b"PEM")
    read = read_credentials({"a": ForeignAccess(key, authorities), "b": ForeignAccess()})
    assert read == {"a": Credentials("sk-secret", b"PEM"), "b": Credentials()}


def test_a_key_is_not_in_what_is_shown_of_it() -> None:
    assert "sk-secret" not in repr(Credentials("sk-secret", None))


@pytest.mark.parametrize("content", [b"", b"\n", b"two words", b"k" * 513, b"key\r\nX-Other: 1", b"\xff\xfe"])
def test_a_file_that_holds_no_key_is_refused_without_quoting_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ForeignAccessUnreadable) as refusal:
        read_credentials({"a": ForeignAccess(path)})
    assert str(refusal.value) == f"{path} does not hold one API key"


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ForeignAccessUnreadable, match="cannot read"):
        read_credentials({"a": ForeignAccess(ca_file=tmp_path / "missing")})
