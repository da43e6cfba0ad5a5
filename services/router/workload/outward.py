"""It is responsible for the TLS keys that clients meet, and for which of them a listener shows to whom.

One key has the operator's names and addresses in its certificate. Each domain has one of its own, which no client of
another domain accepts. All of them live as long as the process, and each of its keysets lists them.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from collections.abc import Sequence

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from libs.aci.keyset import TlsKey
from libs.identity import certificate as certificates
from libs.identity.member import Member
from libs.rpc.tls import named_contexts
from services.router.workload.outward_key import OutwardCertificate, OutwardKey


class Outward:
    """The keys, and the certificates that listeners show for them: new connections get the newest."""

    def __init__(self, dns_names: Sequence[str], ip_addresses: Sequence[str] = (), domains: Sequence[str] = ()) -> None:
        """With domains and nothing else there is no key for whoever asks for none of them."""
        self._dns_names = tuple(dns_names)
        self._ip_addresses = tuple(str(ipaddress.ip_address(address)) for address in ip_addresses)
        only_domains = domains and not dns_names and not ip_addresses
        self._default = None if only_domains else OutwardKey(dns_names, ip_addresses)
        self._domains = {domain: OutwardKey((domain,), domain=domain) for domain in domains}
        self._shown: tuple[OutwardCertificate, ...] = ()

    @property
    def listed(self) -> tuple[TlsKey, ...]:
        """What keysets have of the keys."""
        return tuple(key.listed for key in self._keys())

    @property
    def shown(self) -> tuple[OutwardCertificate, ...]:
        """The certificates of now. The first is for whoever names no host, or none of them."""
        if not self._shown:
            raise RuntimeError("the outward keys are used before they are certified")
        return self._shown

    async def certify(self, member: Member) -> None:
        """Have the mesh CA sign all keys, and show what it signs from now on. Raises the KMS's refusal."""
        certified = [await key.certify(member) for key in self._keys()]
        self._shown = (*(() if self._default else (_nobodys(),)), *certified)

    def context(self, protocols: Sequence[str]) -> ssl.SSLContext:
        """Return the TLS context of the HTTPS listener, which follows renewals and offers these protocols (RFC 7301).

        With domains, a client that names a host that is not one of the operator's is refused inside the handshake, and
        each connection serves the hosts of the certificate that it began with (`tls.served_hosts`).
        """
        for key in self._keys():
            key.context.set_alpn_protocols(list(protocols))
        default = None if self._default is None else self._default.context
        if default is not None and not self._domains:
            return default
        named = {domain: key.context for domain, key in self._domains.items()}
        for domain, context in named.items():
            context.hosts = frozenset((domain,))
        if default is not None:
            default.hosts = frozenset((*self._dns_names, *self._ip_addresses))
            named |= dict.fromkeys(self._dns_names, default)
        return named_contexts(named, default)

    def credentials(self) -> grpc.ServerCredentials:
        """Return the credentials of the gRPC listener, which follow renewals. gRPC shows the certificate that has the
        name that a client asks for, else the first.
        """
        newest = _NewestCertificates(self)
        return grpc.dynamic_ssl_server_credentials(
            newest.first,
            newest,  # type: ignore[arg-type]  # It may return None, which the stubs do not know.
            require_client_authentication=False,
        )

    def _keys(self) -> tuple[OutwardKey, ...]:
        return (*(() if self._default is None else (self._default,)), *self._domains.values())


class _NewestCertificates:
    """What gRPC asks, from a thread of its own, before every handshake: None for what is shown already, because what it
    exchanges may be in use (https://github.com/grpc/grpc/issues/36693).
    """

    def __init__(self, outward: Outward) -> None:
        self._outward = outward
        self._shown = outward.shown
        self.first = _configuration(self._shown)

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        shown = self._outward.shown
        if shown is self._shown:
            return None
        self._shown = shown
        return _configuration(shown)


def _configuration(shown: Sequence[OutwardCertificate]) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(each.key_pem, each.certificate_pem) for each in shown])


def _nobodys() -> OutwardCertificate:
    """A certificate that no client believes, of a key that no keyset lists. gRPC cannot be told to refuse a handshake:
    whoever asks for no host that there is must not be shown another's.
    """
    key, nobody = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(nobody)
        .issuer_name(nobody)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now)
        .sign(key, hashes.SHA256())
    )
    return OutwardCertificate(certificates.key_pem(key), certificate.public_bytes(Encoding.PEM))
