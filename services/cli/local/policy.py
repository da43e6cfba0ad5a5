"""It is responsible for the policy of a local mesh: its operators, its measured composes, and the versions they sign.

A new version is signed only when what a policy must say has changed: the code, the platform, the models, the operators,
or because the newest one ends soon. Otherwise the newest stays, also one that somebody published by hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs import jcs
from libs.files import write_durably
from libs.policy.compose import Anchors, compose_hash
from libs.policy.document import Policy
from libs.policy.signatures import verify_seed
from libs.policy.succession import verify_successor
from libs.policy.vocabulary import JOB
from services.cli.local.measured_sources import source_digest
from services.cli.mesh.layout import Layout
from services.cli.mesh.operators import ensure_operators, ensure_tenant_admin, public_key
from services.cli.mesh.roster import SERVICES, TRUST_DOMAIN
from services.cli.policy.composes import render_compose, template_path
from services.cli.policy.draft import draft_policy, sign_policy, unsigned
from services.cli.policy.reference import DeployedCompose, read_reference
from services.cli.terminal.inputs import read_input, read_json

OPERATORS = 3
THRESHOLD = 2
_RENEW_BEFORE_SECONDS = 7 * 86400


@dataclass(frozen=True, slots=True)
class LocalOperators:
    """The people of a local mesh: their keys lie in its state folder, so whoever owns the folder is all of them."""

    keys: tuple[Ed25519PrivateKey, ...]
    tenant_admin: Ed25519PrivateKey

    @property
    def public_keys(self) -> tuple[bytes, ...]:
        return tuple(public_key(key) for key in self.keys)

    @property
    def threshold(self) -> int:
        return THRESHOLD

    def anchors(self, role: str, dstack_kms_root: bytes | None = None) -> Anchors:
        """What a service of this mesh is measured with."""
        return Anchors(role, TRUST_DOMAIN, self.public_keys, THRESHOLD, dstack_kms_root)


def open_operators(layout: Layout) -> LocalOperators:
    """Return the operators, made on first use. Raises what key files raise."""
    keys = ensure_operators(layout.operators, OPERATORS)
    return LocalOperators(keys, ensure_tenant_admin(layout.operators))


def write_composes(
    layout: Layout, operators: LocalOperators, dstack_kms_root: bytes, node_template: bytes, *, jobs: bool = False
) -> Mapping[str, bytes]:
    """Write the measured app-compose of every service, the KMS's with its pin; return them by role.

    With `jobs` also that of jobs, which here stands for the command that runs their work and not for the work.
    """
    composes = {
        role: render_compose(
            operators.anchors(role, dstack_kms_root if role == "kms" else None),
            source_digest(role),
            node_template if role == "node" else None,
        )
        for role in SERVICES
    }
    if jobs:
        composes[JOB] = render_compose(operators.anchors(JOB), source_digest("cli"), read_input(template_path(JOB)))
    for role, text in composes.items():
        write_durably(layout.compose(role), text, mode=0o644)
    return composes


def ensure_policy(
    layout: Layout,
    operators: LocalOperators,
    composes: Mapping[str, bytes],
    models: Mapping[str, Sequence[str]],
    now: int,
) -> Policy:
    """Return the policy to start with, its file written; the software TEE's reference values must be there.

    Raises what reading, drafting and verifying raise.
    """
    newest = newest_policy(layout, operators)
    basis = _basis(layout, operators, composes, models)
    kept = layout.policies / "basis"
    unchanged = kept.exists() and kept.read_text() == basis
    if newest is not None and unchanged and now < newest.not_after - _RENEW_BEFORE_SECONDS:
        return newest
    draft = draft_policy(
        trust_domain=TRUST_DOMAIN,
        operator_keys=operators.public_keys,
        threshold=THRESHOLD,
        tenant_admin_key=public_key(operators.tenant_admin),
        references=[read_reference(layout.reference)],
        composes=[DeployedCompose(text) for text in composes.values()],
        models=models,
        now=now,
        gpu_roles=frozenset({"node"}),
        key_releases=[{"name": "models/*", "roles": ["node"], "rotate_after_days": 90}],
        previous=newest,
    )
    signed = unsigned(draft)
    for key in operators.keys[:THRESHOLD]:
        signed = sign_policy(signed, key)
    policy = verify_seed(signed, operators.anchors("kms")) if newest is None else verify_successor(newest, signed)
    write_durably(layout.policy(policy.version), signed, mode=0o644)
    write_durably(kept, basis.encode())
    return policy


def newest_policy(layout: Layout, operators: LocalOperators) -> Policy | None:
    """Return the newest policy of this mesh, verified, or None before the first.

    What was published to the running KMS is taken over from its chain: a policy does not go back with a restart.
    Raises what verifying raises.
    """
    versions = sorted(int(path.stem) for path in layout.policies.glob("*.json") if path.stem.isdigit())
    if not versions:
        return None
    newest = verify_seed(read_input(layout.policy(versions[-1])), operators.anchors("kms"))
    while (published := layout.state("kms") / "policy" / f"{newest.version + 1}.json").exists():
        signed = read_input(published)
        newest = verify_successor(newest, signed)
        write_durably(layout.policy(newest.version), signed, mode=0o644)
    return newest


def _basis(
    layout: Layout, operators: LocalOperators, composes: Mapping[str, bytes], models: Mapping[str, Sequence[str]]
) -> str:
    """Return a digest of everything that the draft is made of, the time apart."""
    reference = {name: value for name, value in read_json(layout.reference).items() if name != "pccs_url"}
    everything = {
        "composes": {role: compose_hash(text) for role, text in composes.items()},
        "reference": reference,
        "models": {model: list(digests) for model, digests in models.items()},
        "operators": [key.hex() for key in operators.public_keys],
        "threshold": THRESHOLD,
        "tenant_admin": public_key(operators.tenant_admin).hex(),
    }
    return hashlib.sha256(jcs.dumps(everything)).hexdigest()
