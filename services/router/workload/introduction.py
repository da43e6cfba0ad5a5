"""It is responsible for showing a new keyset to the log before anybody: new evidence that claims its receipt key, and
its report, in a keyset entry of this process.
"""

from __future__ import annotations

from collections.abc import Sequence

from libs import jcs
from libs.events.publish import Publisher
from libs.identity.member import Member
from services.router.workload.generation import Generation
from services.router.workload.outward import Outward


def claims_of(newest: Generation, earlier: Sequence[Generation]) -> dict[str, object]:
    """Return what evidence claims of receipt keys: the newest, and those by which receipts may still be signed."""
    return {
        "receipt_key": newest.receipt_public,
        "earlier_receipt_keys": [generation.receipt_public for generation in earlier],
    }


class Introduction:
    """Introduces keysets."""

    def __init__(self, member: Member, publisher: Publisher, outward: Outward) -> None:
        self._member = member
        self._publisher = publisher
        self._outward = outward

    async def introduce(
        self, newest: Generation, earlier: Sequence[Generation], report: bytes, *, timeout: float
    ) -> None:
        """Return once the log holds the keyset, and listeners show a certificate that lasts for it.

        Until then nobody but KMS and ledger MUST have seen it. Raises what these, or this service's own outbox, refuse
        it for, `LedgerUnavailable` among it.
        """
        await self._outward.certify(self._member)
        credential = self._member.identity.current
        claims = claims_of(newest, earlier)
        if any(credential.evidence.claims.get(name) != claimed for name, claimed in claims.items()):
            credential = await self._member.identity.claim(claims)
        await self._publisher.introduce_again(
            credential.certificate.der, credential.evidence.document, jcs.loads_object(report), timeout=timeout
        )
