"""Runs the ledger: `python -m services.ledger <config.toml>`.

Exit status 3: the log is damaged; 4: it is shorter than what was promised, or contradicts the writer's; 6: a witness
has another history of it; 70: a write failed; 75: a member of a group is to be started again, as it writes no more or
has taken back what nobody else had.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.entry import run
from libs.identity.freshness import load_keeper
from libs.identity.member import join, open_guest
from libs.identity.sealed import ReceiverKey
from libs.process import freeze_heap, notify_ready, until_terminated
from services.ledger.checkpoints.auditing import open_auditor
from services.ledger.checkpoints.witnessed_floor import witnessed_floors
from services.ledger.checkpoints.witnesses import Witness, open_witnesses
from services.ledger.checkpoints.witnessing import Asked
from services.ledger.config import Config
from services.ledger.intake.introduction import introducing
from services.ledger.keys import ReleasedKeys, index_key_of
from services.ledger.opening import ensure_log, logged_policies, open_log, origin_of, verify_log
from services.ledger.replication.group import Group
from services.ledger.replication.promise import require_no_promise
from services.ledger.running import Opened, Trust, running_alone
from services.ledger.serving.https import OutwardAuthority, serving_https
from services.ledger.serving.public import application
from services.ledger.serving.servicer import LedgerServicer, ledger_binding
from services.ledger.storage.recovery import Floor


async def serve(config: Config) -> None:
    """Wire the ledger and serve until terminated. Damage is found before anyone is waited for."""
    settings = config.member
    origin = origin_of(settings.trust_domain, config.events.log_number)
    ack_key, log_key, receiver = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate(), ReceiverKey()
    async with open_guest(settings, "ledger") as (guest, anchors):
        build = sha256((await guest.measured_compose()).encode()).digest()
        policy = load_keeper(settings.state_dir, settings.seed_policy, anchors)
        index_key = await index_key_of(guest)
        await asyncio.to_thread(ensure_log, config.data_dir, origin, config.events.log_number, anchors, policy)
    if not config.replication.is_group:
        require_no_promise(config.data_dir)

    async def verify() -> None:
        await asyncio.to_thread(verify_log, config.data_dir, origin, index_key)

    async def floors(witnesses: Sequence[Witness]) -> Sequence[Floor]:
        # A member of a group may be behind what was witnessed; its writer may not.
        if config.replication.is_group:
            return ()
        return await witnessed_floors(witnesses, config.witness_quorum, origin, verify)

    async with (
        open_witnesses(config.witnesses) as witnesses,
        open_log(
            config.data_dir,
            ack_key.sign,
            time.time_ns,
            index_key,
            await floors(witnesses),
        ) as store,
        open_auditor(config.data_dir, origin) as auditor,
        AsyncExitStack() as stack,
    ):
        claims = {
            "origin": origin,
            "ack_key": ack_key.public_key().public_bytes_raw().hex(),
            "checkpoint_key": auditor.checkpoint_key.hex(),
            "log_key": log_key.public_key().public_bytes_raw().hex(),
            "hpke_key": receiver.public.hex(),
        }
        servicer = LedgerServicer()
        asked = Asked(witnesses, config.witness_quorum, config.witness_seconds)
        opened = Opened(store, auditor, ack_key, log_key, build, asked)
        thread = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="commit"))
        group = Group(config, opened, thread) if config.replication.is_group else None
        async with (
            join(settings, "ledger", claims) as member,
            introducing(member, config, origin, log_key) as introduction,
            member.serve([ledger_binding(servicer), *([] if group is None else [group.binding])]) as serving,
        ):
            kms = member.kms
            keys = ReleasedKeys(kms, receiver, lambda: member.spiffe_id)
            trust = Trust(
                logged_policies(store.description, member.policy),
                member.identity.ca_certificate,
                member.policy.require_fresh,
            )
            outward = OutwardAuthority(kms, config.dns_names, config.ip_addresses)
            if group is None:
                log = running_alone(member, servicer, introduction, config, opened, trust, keys, thread)
            else:
                log = group.running(member, servicer, introduction, trust, keys)
            # The log runs before the KMS is asked for a certificate: with a crowded outbox it gives none, and only what
            # is acknowledged here leaves that.
            async with log as reading:
                public = application(reading.checkpoints, reading.tiles)
                async with serving_https(config.https_listen, outward, public):
                    serving.ready()
                    freeze_heap()
                    notify_ready()
                    await until_terminated()


if __name__ == "__main__":
    sys.exit(run("ledger", Config, serve))
