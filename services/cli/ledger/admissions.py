"""It is responsible for whether a log's writers were let in rightly: each keyset's evidence, by the policy of its time.

And for whether what the ledger says of tenants' vaults and of pruning was ordered (`authority`).

It knows no more than the log and what an auditor brings: a policy that operators signed, and the mesh CA. The policies
in the log must lead from the operators that it began with to that one; evidence is judged under the newest version that
the log held then, as of when the entry was committed.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field

from cryptography import x509

from libs import jcs
from libs.audit.log.description import Description
from libs.audit.log.entries import PublicEntry
from libs.audit.log.findings import Findings, Status
from libs.errors import Code, MeshError
from libs.identity.certificate import parse, spki_of, verify_issued
from libs.identity.lease import appraise_peer
from libs.policy.document import Policy
from libs.policy.revocation import RevocationSet, parse_revocation, verify_revocation
from libs.policy.signatures import SignedPolicy, known_signatures, parse_signed, verify
from libs.policy.succession import verify_successor
from services.cli.ledger.authority import LogAuthority

_KEYSET, _POLICY, _REVOCATION, _ERASURE, _PRUNE = 2, 4, 6, 7, 22
_WHERE = "seg"


class SeedPolicyAnother(MeshError):
    """The log's policies do not begin with the one that it was made with."""

    code = Code.PERMISSION_DENIED
    reason = "SEED_POLICY_ANOTHER"


class WriterOfAnotherMesh(MeshError):
    """The writer's certificate is of another trust domain than its policy."""

    code = Code.PERMISSION_DENIED
    reason = "WRITER_OF_ANOTHER_MESH"


@dataclass(frozen=True, slots=True)
class _Refused:
    """A keyset that no policy has admitted so far."""

    index: int
    wall_ns: int
    entry: PublicEntry
    why: str
    had_policy: bool
    """Whether the log held any policy then: until it does, its seed counts, which comes as its first."""


@dataclass(slots=True)
class PolicyJudge:
    """Is told of each public entry in order; `finish` says what was wrong."""

    description: Description
    given: SignedPolicy
    """What the auditor holds. The log must have it."""
    mesh_ca: bytes
    """The mesh CA's certificate, DER."""
    _versions: list[Policy] = field(default_factory=list)
    _revocations: RevocationSet = field(default_factory=RevocationSet)
    _refused: list[_Refused] = field(default_factory=list)
    _wrong: list[str] = field(default_factory=list)
    _admitted: int = 0
    _ordered: list[tuple[int, int, PublicEntry]] = field(default_factory=list)
    """Judged last: the policy by which one counts may be logged after it."""

    def take(self, index: int, wall_ns: int, entry: PublicEntry) -> None:
        if entry.kind == _POLICY:
            self._take_policy(index, entry)
        elif entry.kind == _REVOCATION:
            with suppress(MeshError):  # What no operator signed is an entry like any other, and withdraws nothing.
                self._take_revocation(entry)
        elif entry.kind == _KEYSET:
            self._take_keyset(index, wall_ns, entry)
        elif entry.kind in (_ERASURE, _PRUNE):
            self._ordered.append((index, wall_ns, entry))

    def finish(self, findings: Findings) -> None:
        authority = LogAuthority(self.description.origin, self._versions)
        for index, wall_ns, entry in self._ordered:
            try:
                if entry.kind == _PRUNE:
                    authority.take_pruning(entry)
                else:
                    authority.take_erasure(entry, wall_ns)
            except MeshError as error:
                self._wrong.append(f"entry {index}: by nobody's word that counts: {error.reason}: {error}")
        for what in self._wrong:
            findings.add(Status.UNPROVEN, _WHERE, None, what)
        for refused in self._refused:
            what = f"entry {refused.index}: policy does not admit this writer: {refused.why}"
            findings.add(Status.UNPROVEN, _WHERE, None, what)
        given = self.given.policy
        if all(policy.digest != given.digest for policy in self._versions):
            findings.add(Status.UNPROVEN, _WHERE, None, f"the log does not hold the version {given.version} given")
        versions = ", ".join(str(policy.version) for policy in self._versions) or "none"
        findings.remark(f"{self._admitted} writers admitted again by policy; versions in the log: {versions}")

    def _take_policy(self, index: int, entry: PublicEntry) -> None:
        signed = jcs.dumps(dict(entry.body))
        try:
            policy = parse_signed(signed).policy
            if any(known.digest == policy.digest for known in self._versions):
                return
            policy = verify_successor(self._versions[-1], signed) if self._versions else self._verify_seed(signed)
        except MeshError as error:
            self._wrong.append(f"entry {index}: no policy of this log's operators: {error.reason}: {error}")
            return
        self._versions.append(policy)
        again, self._refused = self._refused, []
        for refused in again:
            # A KMS may bring the very policy that admits it, in the batch that introduces it.
            if refused.had_policy and refused.entry.issuer != entry.issuer:
                self._refused.append(refused)
            else:
                self._take_keyset(refused.index, refused.wall_ns, refused.entry)

    def _verify_seed(self, signed: bytes) -> Policy:
        description = self.description
        document = known_signatures(parse_signed(signed), description.operator_keys)
        policy = verify(document.document, description.operator_keys, description.operator_threshold)
        if policy.digest != description.seed_policy_digest:
            raise SeedPolicyAnother("the log's first policy is not the one that it was made with")
        return policy

    def _take_revocation(self, entry: PublicEntry) -> None:
        revocation = parse_revocation(jcs.dumps(dict(entry.body)))
        keys = set(self.description.operator_keys).union(*(policy.operator_keys for policy in self._versions))
        verify_revocation(revocation, keys, self.given.policy.trust_domain)
        self._revocations = self._revocations.union([revocation])

    def _take_keyset(self, index: int, wall_ns: int, entry: PublicEntry) -> None:
        had_policy = bool(self._versions)
        try:
            self._appraise(wall_ns, entry)
        except MeshError as error:
            self._refused.append(_Refused(index, wall_ns, entry, f"{error.reason}: {error}", had_policy))
        else:
            self._admitted += 1

    def _appraise(self, wall_ns: int, entry: PublicEntry) -> None:
        if not self._versions:
            raise SeedPolicyAnother("the log holds no policy")
        policy = self._versions[-1].under(self._revocations)
        der = bytes.fromhex(entry.body["certificate"])
        moment = min(wall_ns / 10**9, parse(der).not_after - 1)
        certificate = verify_issued(der, self.mesh_ca, moment)
        ca_spki = spki_of(x509.load_der_x509_certificate(self.mesh_ca).public_key())
        appraise_peer(certificate, jcs.dumps(entry.body["evidence"]), policy, ca_spki, moment)
        if certificate.trust_domain != policy.trust_domain:
            raise WriterOfAnotherMesh(f"{certificate.spiffe_id} is of another mesh")
