"""What a receipt remembers of who stood behind it: always of those who stand behind it now."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from libs import jcs
from services.router.proof.commitments import Attested


@dataclass
class Standing:
    """An identity and a ledger, both of which renew."""

    own: Any
    lease: Any
    identity: Any = field(init=False)

    def __post_init__(self) -> None:
        self.identity = self

    @property
    def current(self) -> Any:
        return SimpleNamespace(evidence=self.own)


def evidence(number: int) -> Any:
    return SimpleNamespace(digest=bytes([number]) * 32, document=b"document %d" % number)


def lease(number: int, *, origin: str = "log") -> Any:
    claims = {"origin": origin}
    return SimpleNamespace(
        evidence=evidence(number),
        certificate=SimpleNamespace(der=b"certificate %d" % number),
        appraisal=SimpleNamespace(workload_claims=claims),
    )


def test_every_renewal_is_seen_at_once() -> None:
    standing = Standing(evidence(1), lease(2))
    attested = Attested(cast(Any, standing), cast(Any, standing), b"boot")
    before = attested.now()
    assert attested.now() == before
    evidences, leases = {1: standing.own, 3: evidence(3)}, {2: standing.lease, 4: lease(4)}
    for own, ledger in ((3, 2), (3, 4), (1, 4), (1, 2)):
        standing.own, standing.lease = evidences[own], leases[ledger]
        said, documents = attested.now()
        named = jcs.loads_object(said)
        assert named["issuer_evidence_sha256"] == bytes([own]).hex() * 32
        assert named["acknowledged_by"]["evidence_sha256"] == bytes([ledger]).hex() * 32
        assert named["acknowledged_by"]["certificate"] == (b"certificate %d" % ledger).hex()
        assert documents == {each.digest: each.document for each in (evidence(own), evidence(ledger))}
    standing.lease = lease(2, origin="another")
    assert jcs.loads_object(attested.now()[0])["acknowledged_by"]["origin"] == "another"
