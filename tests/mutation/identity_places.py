"""Where identity's checks stand, where none are taken away, and those that no relay can rest on."""

from __future__ import annotations

from collections.abc import Mapping

MODULES: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(
        (
            "libs.identity.agent_key",
            "libs.identity.authority",
            "libs.identity.certificate",
            "libs.identity.challenges",
            "libs.identity.exchange",
            "libs.identity.freshness",
            "libs.identity.gate",
            "libs.identity.handover",
            "libs.identity.judge",
            "libs.identity.lease",
            "libs.identity.link",
            "libs.identity.peers",
            "libs.identity.renewal",
            "libs.identity.sealed",
            "libs.policy.ca_signature",
            "libs.policy.custody",
            "services.kms.access",
            "services.kms.issuance",
            "services.kms.joining",
            "services.kms.release",
            "services.kms.replication",
        ),
        frozenset(),
    ),
    "libs.identity.revoked": frozenset({"verify_not_revoked"}),
    "libs.policy.operator_request": frozenset({"verify_operator_request"}),
    "libs.policy.orders": frozenset({"verify_order"}),
    "libs.policy.statement": frozenset({"verify_statement"}),
    "libs.tee.appraisal": frozenset({"_Presented.verify_binding"}),
    "libs.tee.challenge": frozenset({"Challenge.verify_signed"}),
    "services.kms.ca": frozenset({"public_key_of"}),
}
"""Where checks are taken away; in all functions, or in those named."""

OUTSIDE = {
    "libs.identity.admission": "asks the broker, an appraised peer, to let this service in; judges nobody",
    "libs.identity.any_peer": "asks peers, each of which is appraised by itself; passes refusals on",
    "libs.identity.bootstrap_leaf": "makes a leaf; judges nothing",
    "libs.identity.collateral": "asks for collateral, which is judged with the evidence",
    "libs.identity.endorsements": "says who made collateral; judges nothing",
    "libs.identity.environment": "opens environment secrets, which name no sender; its own tests attack each check",
    "libs.identity.gpu_watch": "says when GPUs must be judged again; `test_gpu_watch.py` attacks each check",
    "libs.identity.gpu": "asks for GPU evidence, which is judged with the evidence",
    "libs.identity.instances": "says who is asked first; judges nothing",
    "libs.identity.ledger_writer": "asks appraised peers which of them writes; judges nobody",
    "libs.identity.listener": "hands the newest credential to gRPC; judges nobody",
    "libs.identity.member": "wires the others; its own tests attack its one check",
    "libs.identity.policy_sources": "asks for policy versions; its own tests attack its one check",
    "libs.identity.earlier_policies": "says who was an operator; `test_operator_rotation.py` attacks each check",
    "libs.identity.reappraisal": "says whose turn it is to be judged again; its own tests attack the order",
    "libs.identity.reports": "makes this service's own reports; `test_reports.py` attacks their bounds",
    "libs.identity.revocations": "keeps what operators signed; its own tests attack each check",
    "libs.identity.strangers": "names in the log who was refused; judges nothing",
    "libs.identity.streams": "ends what runs under a stale policy; `test_streams.py` attacks it",
    "libs.identity.statements": "asks for statements; what is in them is judged by `freshness`",
}
"""Modules of `libs.identity` in which nothing is to be taken away, and why."""

EXEMPT = {
    "libs.identity.agent_key.AgentKey.receive_epoch: ValueError('a symmetric key is a secret: see receive_secret')": (
        "a mistake of the caller"
    ),
    "libs.identity.certificate.der_of: CertificateNotAccepted(f'certificate is malformed: {error}')": (
        "what is no PEM is no DER either, which is refused next, for the same reason"
    ),
    "libs.identity.certificate._evidence_digest: CertificateNotAccepted('the evidence extension is malformed')": (
        "the library knows no extension of that number; the type checker wants it said"
    ),
    "libs.identity.freshness.PolicyKeeper.find: PolicyUnknown(f'no policy with digest {digest.hex()} here')": (
        "finds a version among those that were verified; `test_opening.py` has a log that began under none of them"
    ),
    "libs.identity.freshness.PolicyKeeper.signed: PolicyUnknown(f'no policy version {version} here')": (
        "a question for what is not there; nothing is believed for its answer"
    ),
    **dict.fromkeys(
        (
            "libs.identity.freshness.PolicyKeeper._keep: "
            "PolicyNotKept(f'cannot write {self._path(version)}: {error.strerror}')",
            "libs.identity.freshness.PolicyKeeper.accept_earlier: "
            "PolicyNotKept(f'cannot write to {self._folder}: {error.strerror}')",
        ),
        "a disk of this service's own that is full; `test_full_disk.py` has what was accepted before stay in force",
    ),
    "libs.identity.freshness.load_keeper: "
    "PolicyUnreadable(f'cannot read the seed policy {seed_path}: {error.strerror}')": (
        "a file of this service's own that is missing"
    ),
    "libs.identity.gate.MeshGate.admit: RoleNotAllowed(f'role {caller.role} may not call this method')": (
        "asked twice: the middleware that asked the gate asks again, for the same reason"
    ),
    "libs.identity.gate.MeshGate._until_certificate_ends: RuntimeError('a call runs in a task')": (
        "a mistake of the caller"
    ),
    "libs.identity.exchange.EvidenceServicer.PresentEvidence: "
    "EvidenceMismatch('a certificate of a person names no evidence')": (
        "no document is the one that such a certificate names, which is refused next, for the same reason"
    ),
    "libs.identity.handover.verify_successor: SuccessorNotSigned('mesh keys are P-256')": (
        "a certificate for another key was not accepted; the type checker wants it said again"
    ),
    "libs.identity.lease.Leases.hold_certified: EvidenceRequired('the call ended before it began')": (
        "a mistake of the caller: calls run in tasks"
    ),
    **dict.fromkeys(
        (
            "libs.identity.judge.Judge.require_not_named: "
            "verify_not_named(lease, shown.spki_sha256, self._policy.current)",
            "libs.identity.lease.verify_not_named: verify_not_revoked(key, certificate.spiffe_id, policy)",
            "libs.identity.lease.verify_not_named: verify_findings_not_revoked(lease.appraisal, policy)",
            "libs.identity.lease.Leases.end_named: verify_not_named(held.lease, key, policy)",
            "libs.identity.link.Link.require_not_named: "
            "self._judge.require_not_named(self._newest, self.lease.certificate)",
            "libs.identity.peers.Peer.end_named: link.require_not_named()",
        ),
        "only hastens what a judgement refuses as well; `test_reappraisal.py` has nobody judged",
    ),
    "libs.identity.peers.Peer.lease: PeerUnavailable(f'no connection to {self._role} at {self._target} yet')": (
        "nobody is there yet, who could be refused"
    ),
    "libs.identity.peers.Peer.link: "
    "PeerUnavailable(f'{self._role} at {self._target} did not answer within {timeout:.1f} s')": (
        "nobody answers, who could be refused"
    ),
    "libs.identity.peers.Peer._take_leaf: "
    "CertificateNotAccepted(f'{self._target} is {certificate.spiffe_id}, not a {self._role}')": (
        "the handshake has matched the DNS name, and a certificate is not accepted whose SPIFFE ID is another's"
    ),
    "libs.identity.renewal.Identity.current: RuntimeError('identity used before it was obtained')": (
        "a mistake of the caller"
    ),
    "libs.identity.sealed.seal: ValueError('not 1216 bytes')": (
        "the library takes keys of no other length, for the same reason"
    ),
    "services.kms.access.Access.require_still: KeyChangedMeanwhile("
    "f'{grant.name} is under another rule or epoch by now: ask again')": (
        "what was granted changes meanwhile; `test_kms_meanwhile.py` changes it"
    ),
    "services.kms.release.Releases.release: self._access.require_still(grant, caller)": (
        "what was granted ends meanwhile; `test_kms_keys.py` ends it"
    ),
    "services.kms.replication.Replication.finish: self._currency.require()": (
        "asked again before the root goes, for the same reason"
    ),
    "services.kms.replication.Replication.finish: self._currency.require() [1]": (
        "asked before the ledger was waited for, for the same reason"
    ),
    "services.kms.replication.Replication.finish: self._require_order(signed_order, appraisal, caller)": (
        "operators change meanwhile; `test_kms_meanwhile.py` changes them"
    ),
}
"""Checks that no relay can rest on, each with why."""
