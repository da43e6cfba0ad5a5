"""It is responsible for the policy that a service acts under: never an older one, and none that may be stale.

The chain of signed policies since the seed is kept on disk, and so are revocations. All is verified anew at every
start, under the operator keys of the service's own measured configuration, so the disk is no authority. Freshness comes
from the KMS's statement: a service that has had none for five minutes cannot know of a revocation and stops accepting
work.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from libs.errors import Code, MeshError
from libs.files import remove_drafts, write_durably
from libs.identity.earlier_policies import EarlierPolicies
from libs.identity.revocations import REVOCATION_FILE, KnownRevocations
from libs.policy.compose import Anchors
from libs.policy.document import Policy
from libs.policy.revocation import RevocationSet, parse_revocation
from libs.policy.signatures import parse_signed, verify_seed
from libs.policy.statement import Statement
from libs.policy.succession import verify_successor, verify_valid_at

MAX_SILENCE_SECONDS = 300
"""How long a service works without a newer statement (architecture section 7)."""

_CLOCK_SKEW_SECONDS = 60
_FOLDER = "policy"
_VERSION_FILE = re.compile(r"[0-9]+\.json")
_REVOCATIONS = "revocations"

log = structlog.get_logger()


class PolicyStale(MeshError):
    """This service cannot know whether its policy is still in force."""

    code = Code.UNAVAILABLE
    reason = "POLICY_STALE"


class PolicyUnreadable(MeshError):
    """The seed policy, or the chain kept on disk, cannot be used."""

    reason = "POLICY_UNREADABLE"


class RevocationsDiverged(MeshError):
    """The KMS states other revocations than this service holds: it has gone back, or names some that it hides."""

    code = Code.UNAVAILABLE
    reason = "REVOCATIONS_DIVERGED"


class PolicyNotKept(MeshError):
    """The disk takes no policy: it is full, or fails. What is in force here stays so, and grows stale."""

    code = Code.UNAVAILABLE
    reason = "POLICY_NOT_KEPT"


class PolicyUnknown(MeshError):
    """No such policy version here."""

    code = Code.NOT_FOUND
    reason = "POLICY_UNKNOWN"


class PolicyKeeper:
    """The policy in force here, with what was revoked since; moved forward only."""

    def __init__(self, folder: Path, seed: bytes, anchors: Anchors, clock: Callable[[], float] = time.time) -> None:
        """Verify the seed, then what came before it and after it and every revocation, all from disk. Raises the
        policy's own errors, `RevocationsUnreadable` and `PolicyNotKept`.
        """
        self._folder = folder
        self._clock = clock
        self._statement: Statement | None = None
        self._stated_at = 0.0
        self._advanced = asyncio.Event()
        policy = verify_seed(seed, anchors)
        self._seed = (policy.version, seed)
        folder.mkdir(parents=True, exist_ok=True)
        self._earlier = EarlierPolicies(folder, policy)
        self._operators = {*anchors.operator_keys, *policy.operator_keys, *self._earlier.operator_keys}
        if not self._path(policy.version).exists():
            # For a later start with a later seed, which then follows this one.
            self._keep(policy.version, seed)
        while (path := self._path(policy.version + 1)).exists():
            policy = verify_successor(policy, path.read_bytes())
            self._operators.update(policy.operator_keys)
        self._known = KnownRevocations(folder / _REVOCATIONS, policy.trust_domain, self._operators)
        self.current: Policy = policy.under(self.revocations)

    def accept(self, signed: bytes) -> Policy:
        """Move to the next version, durably. Raises when it is not the successor of the current one, and
        `PolicyNotKept`.
        """
        policy = verify_successor(self.current, signed)
        self._keep(policy.version, signed)
        self._operators.update(policy.operator_keys)
        log.info("policy accepted", version=policy.version, digest=policy.digest.hex())
        self._enact(policy)
        return self.current

    def accept_earlier(self, signed: bytes) -> None:
        """Learn the version before the oldest that is known here, durably: its operators may have revoked something.

        Raises `PolicyMalformed`, `PolicyVersionNotNext`, `PolicyNotKept`.
        """
        try:
            self._earlier.add(signed)
        except OSError as error:
            raise PolicyNotKept(f"cannot write to {self._folder}: {error.strerror}") from error
        self._operators |= self._earlier.operator_keys

    def knows_signers(self, revocations: Iterable[bytes]) -> bool:
        """Say whether an operator of a version that is known here signed each. Raises `RevocationMalformed`."""
        return all(parse_revocation(signed).key in self._operators for signed in revocations)

    @property
    def revocations(self) -> RevocationSet:
        """All that this service knows, lifted ones too."""
        return self._known.all

    def accept_revocations(self, signed: Iterable[bytes]) -> None:
        """Learn revocations, durably, and let them count at once. Raises the first refusal among them, or
        `RevocationsNotKept`.

        An operator of any version in this keeper's chain may have signed them: to be taken off later withdraws nothing.
        """
        before = self.revocations
        try:
            self._known.add(signed, self._operators)
        finally:
            # What is valid counts, whatever came with it.
            if self.revocations.number > before.number:
                self._enact(self.current)

    async def advanced(self) -> Policy:
        """Wait until the policy in force changes: by the next version or by a revocation."""
        await self._advanced.wait()
        return self.current

    def note(self, statement: Statement) -> None:
        """Take a verified statement. One that does not match what this service holds, or is not new, refreshes nothing.

        Raises `PolicyStale`, `RevocationsDiverged`.
        """
        if statement.time_ms > (self._clock() + _CLOCK_SKEW_SECONDS) * 1000:
            raise PolicyStale("the KMS's clock is more than a minute ahead of this one")
        if (statement.version, statement.digest) != (self.current.version, self.current.digest):
            raise PolicyStale(
                f"the KMS states policy {statement.version}, this service holds version {self.current.version}"
            )
        known = self.revocations
        if (statement.revocation, statement.revocations_digest) != (known.number, known.digest):
            raise RevocationsDiverged(
                f"the KMS states {statement.revocation} revocations, which are not the {known.number} of this service"
            )
        if self._statement is None or statement.time_ms > self._statement.time_ms:
            self._statement = statement
            self._stated_at = time.monotonic()

    def require_fresh(self) -> Policy:
        """Return the policy in force. Raises `PolicyStale` or `PolicyNotValidNow`."""
        now = self._clock()
        verify_valid_at(self.current, now)
        if self._statement is None:
            raise PolicyStale("no policy statement from the KMS yet")
        silence = max(time.monotonic() - self._stated_at, now - self._statement.time_ms / 1000)
        if silence > MAX_SILENCE_SECONDS:
            raise PolicyStale(f"no policy statement from the KMS for {silence:.0f} s")
        return self.current

    @property
    def oldest(self) -> int:
        """The first version that is known here."""
        return self._earlier.oldest

    @property
    def seed_version(self) -> int:
        """The version that this keeper began with; what is older it has from others."""
        return self._seed[0]

    def find(self, digest: bytes) -> Policy:
        """Return the version with this digest, of those that are known here. Raises `PolicyUnknown`."""
        for version in range(self.oldest, self.current.version + 1):
            if (policy := parse_signed(self.signed(version)).policy).digest == digest:
                return policy
        raise PolicyUnknown(f"no policy with digest {digest.hex()} here")

    def signed(self, version: int) -> bytes:
        """Return a signed version that is known here, 0 being the newest. Raises `PolicyUnknown`."""
        version = version or self.current.version
        if version == self._seed[0]:
            return self._seed[1]
        if (earlier := self._earlier.signed(version)) is not None:
            return earlier
        if not self._seed[0] < version <= self.current.version:
            raise PolicyUnknown(f"no policy version {version} here")
        return self._path(version).read_bytes()

    def _enact(self, policy: Policy) -> None:
        self.current = policy.under(self.revocations)
        advanced, self._advanced = self._advanced, asyncio.Event()
        advanced.set()

    def _keep(self, version: int, signed: bytes) -> None:
        try:
            write_durably(self._path(version), signed)
        except OSError as error:
            raise PolicyNotKept(f"cannot write {self._path(version)}: {error.strerror}") from error

    def _path(self, version: int) -> Path:
        return self._folder / f"{version}.json"


def load_keeper(state_dir: Path, seed_path: Path, anchors: Anchors) -> PolicyKeeper:
    """Open the keeper of a service, which no other process has open.

    Raises `PolicyUnreadable` and the policy's own errors.
    """
    try:
        seed = seed_path.read_bytes()
    except OSError as error:
        raise PolicyUnreadable(f"cannot read the seed policy {seed_path}: {error.strerror}") from error
    folder = state_dir / _FOLDER
    remove_drafts(folder, _VERSION_FILE)
    remove_drafts(folder / _REVOCATIONS, REVOCATION_FILE)
    return PolicyKeeper(folder, seed, anchors)
