"""It is responsible for the revocations that a service knows: verified by it, kept on disk, only ever more of them.

Each is a file of its own, named by its id, so learning one touches no other. The disk is no authority: every file is
verified again at start, and what was removed from it is missed at the next statement.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

import structlog

from libs.errors import Code, MeshError
from libs.files import write_durably
from libs.policy.revocation import RevocationSet, SignedRevocation, parse_revocation, verify_revocation

REVOCATION_FILE = re.compile(r"[0-9a-f]{64}\.json")

log = structlog.get_logger()


class RevocationsUnreadable(MeshError):
    """A revocation kept on disk cannot be used. It is never skipped: it may be one that counts."""

    reason = "REVOCATIONS_UNREADABLE"


class RevocationsNotKept(MeshError):
    """The disk takes no revocation: it is full, or fails. Those that are known count as long as this process lives."""

    code = Code.UNAVAILABLE
    reason = "REVOCATIONS_NOT_KEPT"


class KnownRevocations:
    """The set that this service holds."""

    def __init__(self, folder: Path, trust_domain: str, operator_keys: Collection[bytes]) -> None:
        """Read and verify what the folder holds. Raises `RevocationsUnreadable`."""
        self._folder = folder
        self._trust_domain = trust_domain
        self._unkept: list[SignedRevocation] = []
        self.all = RevocationSet().union(self._kept(path, operator_keys) for path in folder.glob("*.json"))

    def add(self, signed: Iterable[bytes], operator_keys: Collection[bytes]) -> None:
        """Learn these, durably. Raises the first refusal, once those that are valid have been learned.

        One that the disk does not take counts all the same as long as this process lives, and is refused with
        `RevocationsNotKept` now and at each call until the disk takes it: nobody may say of it that it is kept.
        """
        new: list[SignedRevocation] = []
        refusal: MeshError | None = None
        for document in signed:
            try:
                revocation = parse_revocation(document)
                if revocation.revocation.id not in self.all.signed:
                    verify_revocation(revocation, operator_keys, self._trust_domain)
                    new.append(revocation)
            except MeshError as error:
                refusal = refusal or error
        if new:
            self.all = self.all.union(new)
        self._unkept.extend(new)
        while self._unkept:
            try:
                self._keep(self._unkept[0])
            except OSError as error:
                refusal = refusal or RevocationsNotKept(f"cannot write to {self._folder}: {error.strerror}")
                break
            del self._unkept[0]
        if refusal is not None:
            raise refusal

    def _keep(self, signed: SignedRevocation) -> None:
        revocation = signed.revocation
        self._folder.mkdir(parents=True, exist_ok=True)
        write_durably(self._path(revocation.id), signed.document)
        log.warning(
            "revoked", kind=str(revocation.kind), value=revocation.value, why=revocation.reason, id=revocation.id.hex()
        )

    def _kept(self, path: Path, operator_keys: Collection[bytes]) -> SignedRevocation:
        try:
            signed = parse_revocation(path.read_bytes())
            verify_revocation(signed, operator_keys, self._trust_domain)
        except (OSError, MeshError) as error:
            raise RevocationsUnreadable(f"cannot use {path}: {error}") from error
        if self._path(signed.revocation.id) != path:
            raise RevocationsUnreadable(f"cannot use {path}: it holds another revocation than its name says")
        return signed

    def _path(self, identifier: bytes) -> Path:
        return self._folder / f"{identifier.hex()}.json"
