"""It is responsible for showing sessions: what the registry says of them, what one states, and what it proves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text
from teemesh.registry.v1 import registry_pb2 as pb

from libs.aci import claims
from libs.aci.session import Session
from libs.audit.session import evidence_digest
from libs.client.checks import Check
from services.cli.sessions.checks import SessionProof, check_json, proves
from services.cli.terminal.checks import print_checks, print_development
from services.cli.terminal.words import Json, Moment, plain, shown

_POLICY_VERSION = "policy_version"
NOT_PROVEN = "name and endpoint: the evidence speaks for the key alone, the mesh CA's certificates say whose it is"


@dataclass(frozen=True, slots=True)
class SessionReport:
    """One session, and the checks of it."""

    proof: SessionProof
    checks: Sequence[Check]
    policy_source: str
    revocations: int
    """How many were counted."""

    @property
    def holds(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def sealed_under(self) -> Json:
        """The policy version that the session names."""
        version = None if self.proof.session is None else self.proof.session.extra.get(_POLICY_VERSION)
        return version if isinstance(version, int) else None

    def to_json(self) -> dict[str, Json]:
        proof, policy = self.proof, self.proof.terms.policy
        return {
            "verified": self.holds,
            "session_id": proof.session_id,
            "now": proof.terms.now,
            "policy": {
                "source": self.policy_source,
                "version": policy.version,
                "digest": policy.digest.hex(),
                "sealed_under": self.sealed_under,
                "signatures": proof.signatures,
                "revocations": self.revocations,
                "development_roots": list(policy.development_roots),
            },
            "checks": [check_json(check) for check in self.checks],
            "proven": None if proof.appraisal is None else proves(proof.appraisal),
            "not_proven": NOT_PROVEN,
        }


def print_sessions(summaries: Sequence[pb.SessionSummary], console: Console) -> None:
    """Print a table for people."""
    table = Table("session", "node", "models", "established", "until", "current", box=None, pad_edge=False)
    for summary in summaries:
        cells = (
            summary.session_id.hex(),
            summary.spiffe_id.rpartition("/")[2],
            ", ".join(summary.models) or "-",
            _minute(summary.established_ms),
            _minute(summary.expires_ms),
            "yes" if summary.current else "no",
        )
        # Folded rather than cut: an id is there to be copied.
        table.add_row(*(Text(plain(cell), overflow="fold") for cell in cells))
    console.print(table)


def print_statements(session: Session, console: Console) -> None:
    """Print what a session states, and first that nothing but its id was checked."""
    _print(
        console,
        (" UNVERIFIED ", "bold white on red"),
        " this is the session of its id, and what it states; its evidence was not appraised: teemesh sessions verify",
    )
    for name, value in (
        ("session", session.session_id),
        ("node", session.upstream_name),
        ("endpoint", session.endpoint),
        ("verifier", session.verifier_id),
        ("established", Moment(session.established_at)),
        ("until", Moment(session.expires_at)),
        ("evidence", f"{evidence_digest(session).hex()}, {len(session.evidence)} bytes"),
        *((name, _claim(claim)) for name, claim in claims.document(session.claims).items()),
        *sorted(session.extra.items()),
    ):
        _print(console, f"{name:<28} {shown(value)}")


def print_session(report: SessionReport, console: Console) -> None:
    """Print the checks, and what they prove."""
    proof, policy = report.proof, report.proof.terms.policy
    print_development(policy.development_roots, console)
    _print(console, f"policy    version {policy.version} of {policy.trust_domain}, from {plain(report.policy_source)}")
    if report.sealed_under not in (None, policy.version):
        _print(console, f"          the session was sealed under version {report.sealed_under}")
    _print(console, f"revoked   {report.revocations} revocations counted")
    passed = print_checks(report.checks, console)
    if not passed or proof.appraisal is None:
        return
    _print(console, ("it proves of whoever held the key", "bold"))
    for name, value in proves(proof.appraisal).items():
        _print(console, f"  {name:<12} {shown(value)}")
    _print(console, f"it does not prove {NOT_PROVEN}")


def summary_json(summary: pb.SessionSummary) -> dict[str, Json]:
    """What the registry says of a session."""
    return {
        "session_id": summary.session_id.hex(),
        "spiffe_id": summary.spiffe_id,
        "spki_sha256": summary.spki_sha256.hex(),
        "models": list(summary.models),
        "established_ms": summary.established_ms,
        "expires_ms": summary.expires_ms,
        "current": summary.current,
    }


def _claim(claim: dict[str, str]) -> str:
    return ", ".join(claim.values())


def _minute(time_ms: int) -> str:
    return str(Moment(time_ms // 1000)).partition(" (")[0]


def _print(console: Console, *parts: str | tuple[str, str]) -> None:
    console.print(Text.assemble(*parts), soft_wrap=True)
