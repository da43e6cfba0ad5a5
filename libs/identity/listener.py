"""It is responsible for what a mesh listener shows: from each renewal on, new connections get the new certificate."""

from __future__ import annotations

import grpc

from libs.identity.certificate import pem_of
from libs.identity.renewal import Identity


class NewestCertificate:
    """What gRPC asks, from a thread of its own, before every handshake."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._shown = identity.current
        self.first = self._configuration()

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the certificate to show from now on; None when that is the one shown already.

        It MUST be None then: gRPC frees what it exchanges while other handshakes may be about to use it, so that a
        listener which exchanged at every connection was ended by a few that came at once
        (https://github.com/grpc/grpc/issues/36693).
        """
        if self._identity.current is self._shown:
            return None
        self._shown = self._identity.current
        return self._configuration()

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        shown = self._shown
        return grpc.ssl_server_certificate_configuration(
            [(shown.key_pem, shown.certificate.pem)], root_certificates=pem_of(self._identity.ca_certificate)
        )


def listener_credentials(identity: Identity) -> grpc.ServerCredentials:
    """Return credentials of a listener that asks for client certificates of the mesh and follows renewals."""
    newest = NewestCertificate(identity)
    return grpc.dynamic_ssl_server_credentials(
        newest.first,
        newest,  # type: ignore[arg-type]  # It may return None, which the stubs do not know.
        require_client_authentication=True,
    )
