"""It is responsible for saying in words what a policy allows, who signed it, and whether it holds now."""

from __future__ import annotations

import time
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from libs.errors import MeshError
from libs.policy.compose import Anchors
from libs.policy.constraints import TenantConstraints
from libs.policy.document import Policy
from libs.policy.foreign import ForeignKind, ForeignProvider
from libs.policy.releases import KeyRelease
from libs.policy.signatures import known_signatures, parse_signed, verify_each, verify_own, verify_seed
from libs.policy.succession import verify_valid_at


@dataclass(frozen=True, slots=True)
class Assessment:
    """What one can say about a signed policy at one moment."""

    policy: Policy
    signers: frozenset[bytes]
    """Operators of the policy or of the anchors whose signatures are valid; empty when any signature is not."""
    signatures_problem: str | None
    validity_problem: str | None
    anchored: bool
    """Whether the signatures were judged by a measured app-compose, not by the policy's own word alone."""

    @property
    def own_signers(self) -> int:
        return len(self.signers & set(self.policy.operator_keys))

    @property
    def threshold(self) -> int:
        return self.policy.operator_threshold

    @property
    def holds(self) -> bool:
        return self.signatures_problem is None and self.validity_problem is None


def assess(signed: bytes, now: int, anchors: Anchors | None = None) -> Assessment:
    """Judge a signed policy by its own operators and, when given, by those of a measured app-compose. Raises
    `PolicyMalformed`; whatever else is wrong is in the assessment.
    """
    document = known_signatures(parse_signed(signed), anchors.operator_keys if anchors else ())
    policy = document.policy
    signers: frozenset[bytes] = frozenset()
    signatures_problem = validity_problem = None
    try:
        signers = verify_each(document, {*policy.operator_keys, *(anchors.operator_keys if anchors else ())})
        if anchors is None:
            verify_own(document)
        else:
            verify_seed(signed, anchors)
    except MeshError as error:
        signatures_problem = str(error)
    try:
        verify_valid_at(policy, now)
    except MeshError as error:
        validity_problem = str(error)
    return Assessment(policy, signers, signatures_problem, validity_problem, anchored=anchors is not None)


def print_report(assessment: Assessment, console: Console) -> None:
    """Print an assessment for people."""
    policy = assessment.policy
    if policy.development_roots:
        console.print(
            "[bold white on red] DEVELOPMENT POLICY [/] it trusts a software TEE: "
            f"{', '.join(policy.development_roots)}. Nothing under it is proven to run on real hardware.",
            soft_wrap=True,
        )
    console.print(f"policy version {policy.version} of the mesh [bold]{policy.trust_domain}[/]")
    console.print(f"  digest      {policy.digest.hex()}", soft_wrap=True)
    console.print(
        f"  follows     {policy.previous.hex() if policy.version > 1 else 'nothing: it is the first'}", soft_wrap=True
    )
    console.print(
        f"  valid       {_moment(policy.not_before)} to {_moment(policy.not_after)}  {_mark(assessment)}",
        soft_wrap=True,
    )
    _print_signatures(assessment, console)
    _print_allowances(policy, console)


def _mark(assessment: Assessment) -> str:
    problem = assessment.validity_problem
    return "[green]now[/]" if problem is None else f"[bold red]{problem}[/]"


def _print_signatures(assessment: Assessment, console: Console) -> None:
    policy = assessment.policy
    console.print(f"  signatures  {assessment.own_signers} of its {len(policy.operator_keys)} operators, ", end="")
    console.print(f"{policy.operator_threshold} needed")
    for key in policy.operator_keys:
        word = "[green]signed    [/]" if key in assessment.signers else "[yellow]not signed[/]"
        console.print(f"    {word}  {key.hex()}", soft_wrap=True)
    for key in assessment.signers - set(policy.operator_keys):
        console.print(f"    [green]signed    [/]  {key.hex()} (of the app-compose)", soft_wrap=True)
    if assessment.signatures_problem is not None:
        console.print(f"  [bold red]NOT IN FORCE[/] {assessment.signatures_problem}", soft_wrap=True)
    elif assessment.anchored:
        console.print("  [green]sufficient[/] for a service that was measured with this app-compose")
    else:
        console.print("  sufficient by its own word; --compose judges it by the operators that a service obeys")


def _print_allowances(policy: Policy, console: Console) -> None:
    table = Table(
        "role", "compose hash", "os image", "mrtd", "gpu", title="what evidence may show", title_justify="left"
    )
    for role, grant in sorted(policy.roles.items()):
        gpu = "required" if grant.gpu_required else ""
        for allowed in sorted(grant.measurements, key=lambda measurement: measurement.compose_hash):
            table.add_row(role, allowed.compose_hash[:16], allowed.os_image_hash[:16], allowed.mrtd[:16], gpu)
        if not grant.measurements:
            table.add_row(role, "nothing", "", "", gpu)
    console.print(table)
    for root in policy.hardware.vendor_roots:
        kind = "[bold red]development[/]" if root.development else "hardware"
        console.print(f"  vendor root  {root.name} ({kind})")
    console.print(f"  tcb          {', '.join(sorted(policy.hardware.tcb.statuses))}")
    devices = policy.hardware.devices
    listed = [
        f"{len(ids)} {kind}"
        for ids, kind in ((devices.allowed, "listed"), (devices.allowed_families, "CPU families listed"))
        if ids
    ]
    console.print(f"  machines     {' or '.join(listed) or 'any'}, {len(devices.revoked)} revoked")
    if devices.revoked_families:
        console.print(f"  CPU families {', '.join(sorted(devices.revoked_families))} revoked")
    if policy.lifted_revocations:
        console.print(f"  lifts        {len(policy.lifted_revocations)} revocations")
    if policy.retention_months is not None:
        console.print(f"  keeps        tenants' entries for {policy.retention_months} months after their own")
    if policy.hardware.gpu is not None:
        console.print(f"  GPU tokens   of {', '.join(sorted(policy.hardware.gpu.issuers))}")
    if policy.hardware.snp is not None:
        console.print(f"  SEV-SNP      {', '.join(sorted(policy.hardware.snp.minimum_tcb))}")
    for model, digests in sorted(policy.models.items()):
        console.print(f"  model        {model}: {', '.join(digest[:16] for digest in sorted(digests))}", soft_wrap=True)
    for release in policy.key_releases:
        console.print(f"  key          {_key_rule(release)}")
    console.print(f"  evidence     at most {policy.evidence_max_age_seconds} s after its challenge")
    for role, grant in sorted(policy.roles.items()):
        if grant.tcb is not None:
            console.print(f"  tcb          of {role} besides: {', '.join(sorted(grant.tcb.statuses))}")
    for provider in policy.foreign_providers:
        # An address in brackets is no markup.
        console.print(f"  foreign      {_foreign(provider)}", soft_wrap=True, markup=False)
    constraints = policy.constraints
    for name, tenant in (("default", constraints.default), *sorted(constraints.by_tenant.items())):
        console.print(f"  tenant       {name}: {_demands(tenant)}", soft_wrap=True)


def _key_rule(release: KeyRelease) -> str:
    users = ", ".join(sorted(release.roles))
    narrowed = "" if release.compose_hashes is None else f" of {len(release.compose_hashes)} composes alone"
    use = "" if release.held else ", by signing in the KMS only"
    age = "" if release.rotate_after_days is None else f", a new epoch every {release.rotate_after_days} days"
    return f"{release.pattern} ({release.algorithm}) to {users}{narrowed}{use}{age}"


def _foreign(provider: ForeignProvider) -> str:
    """Who outside the mesh gets prompts, by what proof, and whose without any."""
    models = ", ".join(f"{here} as {there}" for here, there in sorted(provider.models.items()))
    proof = "nothing of it verified"
    if provider.kind is not ForeignKind.OPENAI:
        proof = f"{len(provider.measurements)} measurements"
    whose = f", unverified for {len(provider.tenants)} tenants" if provider.best_effort else ""
    return f"{provider.name}: {provider.kind} at {provider.origin}, {models}; {proof}{whose}"


def _demands(tenant: TenantConstraints) -> str:
    """What nodes must be to serve a tenant; an empty list, which no node satisfies, is told as nothing."""
    lists = {
        "in": tenant.regions,
        "on": tenant.tee_types,
        "models": tenant.models if tenant.models is None else tenant.models.keys(),
    }
    demands = ["verified nodes" if tenant.verified_only else "any provider"]
    demands += [
        f"{word} {' or '.join(sorted(items)) or 'nothing'}" for word, items in lists.items() if items is not None
    ]
    if tenant.gpu_required:
        demands.append("with a GPU")
    if tenant.max_evidence_age_seconds is not None:
        demands.append(f"evidence of at most {tenant.max_evidence_age_seconds} s")
    return ", ".join(demands)


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(seconds))
