"""The throwaway CA's files, for those who take certificates and keys by path."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from tests.fakes import pki


@dataclass(frozen=True, slots=True)
class Files:
    certificate: Path
    key: Path


class ThrowawayCa:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca = pki.ThrowawayCa()
        self.root = folder / "ca.pem"
        self.root.write_bytes(self._ca.pem)

    def issue(self, dns_name: str, role: str) -> Files:
        """Return files for one name, valid as client and as server, with the role's SPIFFE id."""
        key, certificate = self._ca.leaf(f"spiffe://mesh.test/{role}/one", dns_name)
        files = Files(self._folder / f"{dns_name}.pem", self._folder / f"{dns_name}.key")
        files.certificate.write_bytes(certificate)
        files.key.write_bytes(key)
        return files

    def client_context(self, files: Files) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.root))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(files.certificate, files.key)
        return context
