"""It is responsible for this node's attestation reports, as an ACI direct service (section 4).

A report shows that the receipt key is held by the measured code at this moment. It has no evidence of GPUs: these
answer in the node's own evidence, which claims the same key.
"""

from __future__ import annotations

from dataclasses import dataclass

from libs.aci import report
from libs.aci.provenance import IMAGE, SOURCES, provenance_of
from libs.aci.report import DIRECT
from libs.identity.reports import TEE_TYPE, Reports


@dataclass(frozen=True, slots=True)
class ReportSettings:
    """The TOML table [reports]."""

    repo_url: str | None = None
    """Where the measured code's source is published; goes into the attestation report, as a label."""
    image_digest_of: str = IMAGE
    """What the image digest in the measured app-compose is over: "image", the image's manifest; "sources", the files
    that run, where there is no image."""
    quotes_per_second: float = 1.0
    """How often the quote device may be asked for a fresh report, by everybody together. Four seconds' worth may come
    at once; more is refused."""

    def __post_init__(self) -> None:
        if self.image_digest_of not in (IMAGE, SOURCES):
            raise ValueError(f"reports.image_digest_of must be {IMAGE} or {SOURCES}")
        if not self.quotes_per_second > 0:
            raise ValueError("reports.quotes_per_second must be positive")


class NodeReports:
    """Tells them."""

    def __init__(self, reports: Reports, settings: ReportSettings, app_compose: str) -> None:
        self._reports = reports
        self._settings = settings
        self._app_compose = app_compose

    async def report(self, nonce: str | None) -> bytes:
        """Return the report for a nonce, or the one without. Raises `ProvenanceUnknown` and what `Reports.made` does.

        A node whose compose leads to no one image serves all the same: its routers ask for its evidence.
        """
        settings = self._settings
        provenance = provenance_of(
            self._app_compose, repo_url=settings.repo_url, image_digest_of=settings.image_digest_of
        )
        made = await self._reports.made(nonce)
        return report.assemble(
            made.keyset,
            nonce=made.nonce,
            tee_type=TEE_TYPE,
            provenance=provenance,
            evidence=made.evidence,
            serving=DIRECT,
        )
