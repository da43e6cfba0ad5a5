"""It is responsible for the numbered checks of a provider: what the registry says of a node, held against proof.

The session's evidence is appraised here. That the evidence's key is the named node's at the listed endpoint is the mesh
CA's word, in the certificate whose key the node itself shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from libs.audit.session import SessionTerms, evidence_digest
from libs.client.checks import Check, evaluate, proven
from libs.errors import Code, MeshError
from libs.tee.appraisal import Appraisal
from services.cli.providers.gathering import Gathered
from services.cli.sessions.checks import SessionProof

_ID, _EVIDENCE = 1, 2


class ProviderNotConfirmed(MeshError):
    """The registry says something else of a node than its evidence or its certificate."""

    code = Code.PERMISSION_DENIED
    reason = "PROVIDER_NOT_CONFIRMED"


@dataclass(slots=True)
class ProviderProof:
    """Each step may rest on what earlier ones proved, and on nothing that they did not."""

    gathered: Gathered
    terms: SessionTerms
    session: SessionProof | None = None

    @property
    def appraisal(self) -> Appraisal | None:
        return None if self.session is None else self.session.appraisal

    @property
    def steps(self) -> tuple[tuple[str, Callable[[], str]], ...]:
        def of_session(step: Callable[[SessionProof], str]) -> Callable[[], str]:
            return lambda: step(self._session())

        return (
            ("its session is the one of the listed id", of_session(SessionProof.is_of_its_id)),
            ("the session's evidence holds under the policy", of_session(SessionProof.evidence_holds)),
            ("the session says what its evidence proves", of_session(SessionProof.statements_hold)),
            ("nothing that bears it is revoked", of_session(SessionProof.nothing_is_revoked)),
            ("the session is open now", of_session(SessionProof.was_open)),
            ("the registry lists what is claimed", self.listing_holds),
            ("the node itself is of that name and key", self.node_is_named),
        )

    def listing_holds(self) -> str:
        session = proven(self._session().session, _ID)
        appraisal = proven(self.appraisal, _EVIDENCE)
        provider, claimed = self.gathered.provider, appraisal.workload_claims
        models = sorted((model["id"], model["weights_sha256"]) for model in claimed.get("models", ()))
        for what, listed, proof in (
            ("name", provider.spiffe_id, session.upstream_name),
            ("endpoint", f"https://{provider.endpoint}", session.endpoint),
            ("key", provider.spki_sha256, appraisal.spki_sha256),
            ("evidence", provider.evidence_digest, evidence_digest(session)),
            ("models", sorted((model.id, model.weights_sha256.hex()) for model in provider.models), models),
            ("engine", provider.engine.name, claimed.get("engine") or ""),
            ("engine's arguments", provider.engine.arguments_sha256.hex(), claimed.get("engine_args_sha256") or ""),
            ("region", provider.region, claimed.get("region") or ""),
        ):
            if listed != proof:
                raise ProviderNotConfirmed(f"the registry lists another {what} than the session and its evidence")
        return ", ".join(f"{model} {weights[:16]}..." for model, weights in models)

    def node_is_named(self) -> str:
        session, appraisal = proven(self._session().session, _ID), proven(self.appraisal, _EVIDENCE)
        provider, certificate = self.gathered.provider, self.gathered.certificate
        if isinstance(certificate, MeshError):
            raise certificate
        if certificate.spiffe_id != provider.spiffe_id:
            raise ProviderNotConfirmed(f"who answers at {provider.endpoint} is {certificate.spiffe_id}")
        if certificate.spki_sha256 != appraisal.spki_sha256 or certificate.evidence_digest != evidence_digest(session):
            raise ProviderNotConfirmed("the node shows another key than its session is about: if it renews, ask again")
        return f"{certificate.spiffe_id} at {provider.endpoint}"

    def _session(self) -> SessionProof:
        if self.session is None:
            document = self.gathered.document
            if isinstance(document, MeshError):
                raise document
            self.session = SessionProof(document, self.gathered.provider.session_id.hex(), self.terms)
        return self.session


def check_provider(proof: ProviderProof) -> list[Check]:
    """Take every step."""
    return evaluate(proof.steps)
