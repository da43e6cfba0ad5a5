"""The base: a bare grpc.aio server, as its own process, that fans the same messages out and does nothing else.

`python -m tests.bench.registry_bare FOLDER` reads key.pem, certificate.pem and ca.pem there and prints its port. It
takes every caller that TLS lets through at its word, and keeps nothing.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
from teemesh.registry.v1 import registry_pb2 as pb
from teemesh.registry.v1 import registry_pb2_grpc

from tests.bench.registry_fleet import MODEL, WEIGHTS


class Bare(registry_pb2_grpc.ProviderRegistryServiceServicer):
    """Every renewal goes to every watcher."""

    def __init__(self) -> None:
        self._watchers: set[asyncio.Queue[pb.WatchResponse]] = set()
        self._names: dict[str, int] = {}
        self._sequence = 0

    async def Register(self, request: Any, context: Any) -> pb.RegisterResponse:  # noqa: N802
        return pb.RegisterResponse(session_id=bytes(32))

    async def Renew(self, request: Any, context: Any) -> pb.RenewResponse:  # noqa: N802
        self._sequence += 1
        instance = self._names.setdefault(context.peer(), len(self._names))
        provider = pb.Provider(
            spiffe_id=f"spiffe://mesh.test/node/n{instance}",
            endpoint="127.0.0.1:1",
            models=[pb.Model(id=MODEL, weights_sha256=bytes.fromhex(WEIGHTS))],
            evidence_digest=bytes(32),
            spki_sha256=bytes(32),
            session_id=bytes(32),
            load=request.load,
            engine=pb.Engine(name="embedded/1", arguments_sha256=bytes(32)),
        )
        event = pb.WatchResponse(changed=provider, sequence=self._sequence)
        for watcher in self._watchers:
            watcher.put_nowait(event)
        return pb.RenewResponse()

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[pb.WatchResponse]:  # noqa: N802
        watcher: asyncio.Queue[pb.WatchResponse] = asyncio.Queue()
        self._watchers.add(watcher)
        yield pb.WatchResponse(snapshot=pb.Snapshot())
        while True:
            yield await watcher.get()


async def serve(folder: Path) -> None:
    server = grpc.aio.server()
    registry_pb2_grpc.add_ProviderRegistryServiceServicer_to_server(_bare(), server)
    key, certificate, ca = ((folder / name).read_bytes() for name in ("key.pem", "certificate.pem", "ca.pem"))
    credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


def _bare() -> Bare:
    return Bare()  # type: ignore[abstract]  # The other methods stay unimplemented.


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
