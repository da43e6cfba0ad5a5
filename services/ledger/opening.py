"""It is responsible for opening the log at start: made once, of this mesh, whole, and with the keys to all of it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import structlog

from libs.errors import MeshError
from libs.events.subjects import stream_name
from libs.identity.freshness import PolicyKeeper, PolicyUnknown
from libs.policy.compose import Anchors
from libs.policy.signatures import parse_signed
from services.ledger.intake.admission import REPLAYED, Admission
from services.ledger.intake.policies import LoggedPolicies
from services.ledger.intake.rejections import RECALLED, Rejections
from services.ledger.storage import derived, description, keyring, recovery, segments, watermark
from services.ledger.storage.damage import LogDamaged
from services.ledger.storage.description import LogDescription
from services.ledger.storage.index import Index
from services.ledger.storage.pages import PageDamaged
from services.ledger.storage.recovery import CHECKPOINTS_LOG, Floor
from services.ledger.storage.segment_files import SEGMENTS
from services.ledger.storage.store import LogStore, lock_log
from services.ledger.vaults.erasures import Erasures
from services.ledger.vaults.shares import require_shares
from services.ledger.vaults.vaults import Vaults

log = structlog.get_logger()


class LogOfAnotherMesh(MeshError):
    """The folder holds a log that other operators began, or one of another name."""

    reason = "LOG_OF_ANOTHER_MESH"


def origin_of(trust_domain: str, log_number: int) -> str:
    """Return the name of a mesh's log."""
    return f"{trust_domain}/ledger/{log_number}"


def ensure_log(directory: Path, origin: str, log_number: int, anchors: Anchors, policy: PolicyKeeper) -> None:
    """Make the log where there is none, under the seed policy that this service starts with.

    What a host could write into `log.json` decides whose policies count, so it must say what was measured. Raises
    `LogOfAnotherMesh`, or `LogDamaged` where only the description is gone.
    """
    if not (directory / description.NAME).exists():
        _require_empty(directory)
        seed = parse_signed(policy.signed(policy.seed_version)).policy
        made = LogDescription(
            origin, stream_name(log_number), seed.digest, anchors.operator_keys, anchors.operator_threshold
        )
        LogStore.create(directory, made)
        log.info("log made", origin=origin, directory=str(directory), seed_policy=seed.digest.hex())
    found = description.read(directory)
    if found.origin != origin or not _began_rightly(found, anchors, policy):
        raise LogOfAnotherMesh(
            f"{directory} holds the log {found.origin}, begun by other operators than were measured, and no policy "
            "known here leads from them to those"
        )


@asynccontextmanager
async def open_log(
    directory: Path,
    sign: Callable[[bytes], bytes],
    clock: Callable[[], int],
    index_key: bytes,
    promised: Sequence[Floor] = (),
) -> AsyncIterator[LogStore]:
    """Open the log while the body runs. Raises what `LogStore` does, `LogDamaged` and `LogRolledBack` among it."""
    store = await asyncio.to_thread(LogStore, directory, sign=sign, clock=clock, index_key=index_key, promised=promised)
    with store:
        report = store.report
        log.info(
            "log opened", size=report.size, floor=report.floor, segments=report.segments, read=report.segments_read
        )
        if report.torn is not None:
            log.warning(
                "a torn tail was cut",
                why=report.torn.why,
                damage=report.torn.damage,
                at=report.torn.start,
                saved=str(report.saved_tail),
            )
        yield store


def verify_log(directory: Path, origin: str, index_key: bytes) -> None:
    """Verify the log by itself, as it is opened, changing none of it.

    Damage of what is derived is passed over: opening the log makes it anew. Raises `LogLocked`, `LogDamaged` or
    `LogRolledBack`.
    """
    folder = directory / derived.FOLDER
    with ExitStack() as closing:
        closing.callback(os.close, lock_log(directory))
        folder.mkdir(mode=0o700, exist_ok=True)
        with suppress(PageDamaged):
            recovery.examine(directory, origin, segments.Geometry(), index=Index(folder, index_key))


def _began_rightly(found: LogDescription, anchors: Anchors, policy: PolicyKeeper) -> bool:
    """Say whether the log began under the measured operators; or, where operators have changed since, under those of a
    version from which the measured ones' own policy descends.
    """
    began = (frozenset(found.operator_keys), found.operator_threshold)
    if began == (frozenset(anchors.operator_keys), anchors.operator_threshold):
        return True
    try:
        first = policy.find(found.seed_policy_digest)
    except PolicyUnknown:
        return False
    return began == (frozenset(first.operator_keys), first.operator_threshold)


def logged_policies(found: LogDescription, policy: PolicyKeeper) -> LoggedPolicies:
    """Return the log's chain of policies, before any record, with the seed where this service has it."""
    policies = LoggedPolicies(found)
    for version in range(policy.oldest, policy.current.version + 1):
        signed = policy.signed(version)
        if parse_signed(signed).policy.digest == found.seed_policy_digest:
            policies.offer_seed(signed)
    return policies


def restore(
    store: LogStore,
    admission: Admission,
    policies: LoggedPolicies,
    vaults: Vaults,
    erasures: Erasures,
    rejections: Rejections,
) -> None:
    """Take in what the log says of policies, vaults and refused numbers, and check that all of it can still be opened
    but for what was erased.

    Raises `LogDamaged` for entries whose share is gone, `SeedPolicyMissing` where nobody could be judged.
    """
    admission.replay(store.reader.entry(index) for index in store.index.of_kinds(REPLAYED))
    for index in store.index.of_kinds(RECALLED):
        rejections.recall(store.reader.entry(index))
    require_shares(store.index, erasures, vaults.holds)
    log.info("log understood", policy_version=policies.newest.version)


def _require_empty(directory: Path) -> None:
    folder = directory / SEGMENTS
    kept = [name for name in (keyring.NAME, watermark.NAME, CHECKPOINTS_LOG) if (directory / name).exists()]
    if kept or (folder.exists() and any(folder.iterdir())):
        raise LogDamaged(description.NAME, 0, "it is gone, though the folder holds a log")
