"""The public listener: TLS 1.3 under a certificate of the mesh CA, signed notes and tiles, and nothing else."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from libs.identity.certificate import key_pem, pem_of
from libs.transparency.tiles import Tile
from services.ledger.checkpoints.auditing import NoCheckpoint, SignedTree
from services.ledger.serving.https import CannotListen, OutwardCertificate, serving_https
from services.ledger.serving.public import application
from tests.fakes.https_application import status_of, unreadable_requests
from tests.fakes.joined_mesh import JoinedMesh, KmsCore


class Newest:
    """Checkpoints as the ledger has them."""

    def __init__(self) -> None:
        self.tree: SignedTree | None = None

    async def read(self, tile: Tile) -> bytes:
        return tile.path().encode()

    @property
    def witnessed(self) -> SignedTree:
        return self.newest

    @property
    def newest(self) -> SignedTree:
        if self.tree is None:
            raise NoCheckpoint("nothing was signed yet")
        return self.tree


class Authority:
    """The KMS's part, without the call."""

    def __init__(self, kms: KmsCore) -> None:
        self._kms = kms
        self.serials: list[int] = []

    async def certify(self) -> OutwardCertificate:
        key = ec.generate_private_key(ec.SECP256R1())
        now = x509.load_der_x509_certificate(self._kms.ca.certificate).not_valid_before_utc.timestamp()
        der = self._kms.ca.issue_server_certificate(key.public_key(), ["ledger.example"], ["127.0.0.1"], now)
        self.serials.append(x509.load_der_x509_certificate(der).serial_number)
        # The first one is past its half life at once, so that it is renewed.
        life = 0.0 if len(self.serials) == 1 else 4e9
        return OutwardCertificate(key_pem(key), pem_of(der), life, life)


@asynccontextmanager
async def client(kms: KmsCore, newest: Newest) -> AsyncIterator[tuple[aiohttp.ClientSession, str, Authority]]:
    authority = Authority(kms)
    context = ssl.create_default_context(cadata=pem_of(kms.ca.certificate).decode())
    connector = aiohttp.TCPConnector(ssl=context, force_close=True)
    async with (
        serving_https("127.0.0.1:0", authority, application(newest, newest)) as port,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        yield session, f"https://127.0.0.1:{port}", authority


async def test_the_newest_checkpoint_is_served_to_anyone(kms: KmsCore) -> None:
    newest = Newest()
    async with client(kms, newest) as (session, url, _):
        async with session.get(f"{url}/checkpoint") as response:
            assert (response.status, await response.text()) == (404, "NO_CHECKPOINT\n")
        newest.tree = SignedTree(1, bytes(32), b"note\n")
        for path in ("checkpoint", "checkpoint.witnessed"):
            async with session.get(f"{url}/{path}") as response:
                assert (response.status, await response.read()) == (200, b"note\n")
                assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
                assert response.headers["Cache-Control"] == "no-cache"
        async with session.get(f"{url}/") as response:
            assert response.status == 404
        async with session.post(f"{url}/checkpoint", data=b"x") as response:
            assert response.status == 405


async def test_what_nobody_should_send_is_refused_and_the_ledger_serves_on(kms: KmsCore) -> None:
    newest = Newest()
    newest.tree = SignedTree(1, bytes(32), b"note\n")
    async with client(kms, newest) as (session, url, _):
        context = ssl.create_default_context(cadata=pem_of(kms.ca.certificate).decode())
        for name, hostile in unreadable_requests("/checkpoint").items():
            assert await status_of(int(url.rpartition(":")[2]), context, hostile.data) == hostile.refusal[0], name
        async with session.get(f"{url}/checkpoint") as response:
            assert (response.status, await response.read()) == (200, b"note\n")


async def test_connections_get_the_renewed_certificate(kms: KmsCore) -> None:
    async with client(kms, Newest()) as (session, url, authority):
        async with session.get(f"{url}/checkpoint") as response:
            await response.read()
        context = ssl.create_default_context(cadata=pem_of(kms.ca.certificate).decode())
        port = int(url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        await writer.wait_closed()
        assert len(authority.serials) == 2
        assert x509.load_der_x509_certificate(shown).serial_number == authority.serials[1]


async def test_older_tls_is_refused(kms: KmsCore) -> None:
    async with client(kms, Newest()) as (session, url, _):
        context = ssl.create_default_context(cadata=pem_of(kms.ca.certificate).decode())
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"{url}/checkpoint", ssl=context)


async def test_an_address_that_is_taken_is_said_so(kms: KmsCore, mesh: JoinedMesh) -> None:
    async with client(kms, Newest()) as (_, url, authority):
        with pytest.raises(CannotListen):
            async with serving_https(url.removeprefix("https://"), authority, application(Newest(), Newest())):
                pass
