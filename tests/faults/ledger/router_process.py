"""A router that writes entry after entry until it dies: `python -m tests.faults.ledger.router_process CONFIG --step 7`.

It says `finished <entry id> <index>` once it would have let a response go: after the acknowledgement is durable.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from libs.rpc.hardening import ssl_hardening

ssl_hardening()

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: E402 - gRPC comes after it
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc  # noqa: E402

from libs.events.publish import EventSettings, open_publisher  # noqa: E402
from libs.events.sending import Timing  # noqa: E402
from libs.events.vault import VaultKey  # noqa: E402
from libs.identity.member import Member, MemberSettings, join  # noqa: E402
from libs.identity.sealed import ReceiverKey, release_info  # noqa: E402
from libs.transparency.leaf import Kind  # noqa: E402
from tests.faults.dying import Death, counting  # noqa: E402

_CALL_SECONDS = 30.0
_STEPS = ("write", "fsync", "fdatasync", "unlink")


async def write(config: dict[str, Any], count: int) -> None:
    """Join, and write so many entries, one after the other."""
    member_table = config["member"]
    paths = {name: Path(member_table[name]) for name in ("state_dir", "guest_socket", "seed_policy")}
    lists = {name: tuple(member_table[name]) for name in ("kms", "kms_bootstrap")}
    settings = MemberSettings(**{**member_table, **paths, **lists})
    events = EventSettings(**{**config["events"], "outbox": Path(config["events"]["outbox"])})
    log_key, receiver = Ed25519PrivateKey.generate(), ReceiverKey()
    claims = {"log_key": log_key.public_key().public_bytes_raw().hex(), "hpke_key": receiver.public.hex()}
    async with join(settings, "router", claims) as member:
        ledger = member.peer("ledger", config["ledger"])

        async def vault(tenant: str) -> VaultKey:
            return await _vault(member, await ledger.channel(_CALL_SECONDS), receiver, tenant)

        async with open_publisher(
            member, events, ledger, log_key=log_key, open_vault=vault, timing=Timing(resend_seconds=0.5)
        ) as publisher:
            key = await vault(config["tenant"])
            for number in range(count):
                committed = await publisher.commit(Kind.RECEIPT, {"n": number}, vault=key, timeout=_CALL_SECONDS)
                index = int.from_bytes(committed.acknowledgement.statement[8:16], "big")
                sys.stdout.write(f"finished {committed.entry_id.hex()} {index}\n")
                sys.stdout.flush()
                publisher.released(committed)


async def _vault(member: Member, channel: Any, receiver: ReceiverKey, tenant: str) -> VaultKey:
    answer = await ledger_pb2_grpc.LedgerServiceStub(channel).OpenVault(
        ledger_pb2.OpenVaultRequest(tenant_id=tenant), timeout=_CALL_SECONDS
    )
    info = release_info(f"ledger-vault/{answer.vault_id.hex()}", answer.vault_epoch, member.spiffe_id)
    return VaultKey(answer.vault_id, answer.vault_epoch, receiver.open(answer.sealed_key, info), tenant)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.ledger.router_process", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--step", type=int, default=0, help="the write or sync at which it dies, from 1")
    parser.add_argument("--torn", action="store_true", help="in the middle of it")
    arguments = parser.parse_args()
    if arguments.step:
        death = Death(arguments.step, torn=arguments.torn, armed=True)
        for name in (*_STEPS, "open"):
            setattr(os, name, counting(death, name, getattr(os, name), is_counted=name in _STEPS))
    asyncio.run(write(json.loads(arguments.config.read_bytes()), arguments.count))


if __name__ == "__main__":
    main()
