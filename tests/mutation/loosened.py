"""Mutants of identity and keys beside the refusals: what a proof is held against is taken from the proof itself."""

from __future__ import annotations

from tests.mutation.changes import Weakening

LOOSENED: list[tuple[Weakening, tuple[str, ...]]] = [
    (
        Weakening("libs.identity.lease", "appraise_peer", "certificate.spki", "evidence.spki"),
        (
            "evidence under another key",
            "a server with the evidence of the real one's key",
            "a next certificate of a key that its evidence does not speak for",
        ),
    ),
    (
        Weakening("libs.identity.lease", "appraise_peer", "policy.rules(certificate.role)", "policy.rules('router')"),
        ("evidence under another role", "a server with a router's code"),
    ),
    (
        Weakening(
            "libs.identity.lease", "Leases._is_overtaken", "held.lease.policy is not self._policy.current", "False"
        ),
        ("a lease that policy has overtaken", "a lease on the successor of a revoked key"),
    ),
    (
        Weakening("libs.identity.link", "Link.is_overtaken", "self._judged_under is not self._judge.policy", "False"),
        ("a server that policy has overtaken",),
    ),
    (
        Weakening("libs.identity.authority", "proven_kms", "leaf_spki", "None"),
        ("the real KMS's evidence from behind another leaf",),
    ),
    (
        Weakening(
            "libs.identity.authority",
            "proven_kms",
            "OwnNonce(challenge.nonce)",
            "OwnNonce(evidences.parse(proof.document).challenge.nonce)",
        ),
        ("the real KMS's evidence for an earlier question",),
    ),
    (
        Weakening("libs.identity.challenges", "Challenges.spend", "found.purpose != purpose", "False"),
        (
            "evidence for a challenge of another purpose",
            "evidence for a person's challenge",
            "an operator's signature under a service's challenge",
            "an operator's signature under a newcomer's challenge",
            "a newcomer's evidence for a certificate",
            "a newcomer's evidence for a person's challenge",
        ),
    ),
    (
        Weakening(
            "libs.identity.challenges", "Challenges.spend", "found.issued_at + lifetime <= self._clock()", "False"
        ),
        ("evidence that answers a challenge a minute late",),
    ),
    (
        Weakening(
            "libs.identity.certificate",
            "verify_asked_for",
            "certificate.spiffe_id != subject.spiffe_id",
            "certificate.instance != subject.instance",
        ),
        ("a certificate for another role than asked", "a certificate in another mesh than asked"),
    ),
    (
        Weakening("services.kms.issuance", "Issuance.certify", "spki_of(key)", "evidence.spki"),
        ("somebody else's evidence with a request of one's own",),
    ),
    (
        Weakening("services.kms.replication", "Replication._appraise", "shown.spki", "evidence.spki"),
        ("a newcomer's evidence over another connection",),
    ),
    (
        Weakening("services.kms.joining", "receive_root", "shown.spki", "None"),
        ("a giver's evidence over another connection",),
    ),
    (
        Weakening(
            "services.kms.joining",
            "receive_root",
            "OwnNonce(own.nonce)",
            "OwnNonce(evidences.parse(begun.document).challenge.nonce)",
        ),
        ("a giver's evidence for another nonce",),
    ),
    (
        Weakening("libs.identity.sealed", "release_info", "name.encode()", "b''"),
        ("a key sealed for another name",),
    ),
    (
        Weakening(
            "libs.identity.sealed",
            "release_info",
            "struct.pack('>IBH', epoch, algorithm.number, len(text))",
            "struct.pack('>BH', algorithm.number, len(text))",
        ),
        ("a key sealed for another epoch",),
    ),
    (
        Weakening("libs.identity.sealed", "release_info", "algorithm.number", "0"),
        ("a key sealed for another algorithm",),
    ),
    (
        Weakening("libs.identity.sealed", "release_info", "receiver_spiffe_id.encode()", "b''"),
        ("a key sealed for another instance",),
    ),
    (
        Weakening("libs.identity.handover", "_statement", "_CONTEXT", "b''"),
        ("a next certificate whose digest was signed for some other end",),
    ),
    (
        Weakening(
            "libs.policy.custody",
            "verify_key_use",
            "_verified(_USE, document, signature, ca_spki)",
            "_verified(_KEY, document, signature, ca_spki)",
        ),
        ("a statement on a key in the place of one on its use",),
    ),
]
"""Each with the rows that must notice."""
