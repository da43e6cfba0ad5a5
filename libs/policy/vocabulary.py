"""It is responsible for the words that policy, anchors and requests share: roles, names and their shapes."""

from __future__ import annotations

import re

SERVICE_ROLES = frozenset({"attestation", "kms", "registry", "router", "node", "ledger", "broker"})
"""The roles of the mesh's own services."""

AGENT = "agent"
"""The role of a workload that serves nobody and has keys of its own; its code and its app-compose are its owner's."""

JOB = "job"
"""The role of a workload that runs stages of pipelines and says so in the log; its code is its owner's, too."""

EVIDENCE_ROLES = SERVICE_ROLES | {AGENT, JOB}
"""The roles that prove themselves by evidence."""

PEOPLE_ROLES = frozenset({"operator", "auditor"})
"""The roles that prove themselves by an operator's signature; they never have measurements."""

ROLE = re.compile("|".join(sorted(EVIDENCE_ROLES)))
TRUST_DOMAIN = re.compile(r"(?=.{1,200}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
"""What is both a SPIFFE trust domain and a DNS suffix: certificates need it as both."""

INSTANCE = re.compile(r"[a-z0-9-]{1,40}")

REGION = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
"""Where a node runs, as its operator names it."""

KEY_BYTES = 32
"""Length of an Ed25519 public key, and of a SHA-256 digest."""

SIGNATURE_BYTES = 64
"""Length of an Ed25519 signature."""
