"""Responsible for the rules that policy states for one role: what its evidence must satisfy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from libs.errors import Code, MeshError
from libs.tee.collateral import Collateral
from libs.tee.device import Device
from libs.tee.nvidia.evidence import GpuRule
from libs.tee.rules import Rule
from libs.tee.snp.endorsement import SnpEndorsement
from libs.tee.snp.platform import SnpRules
from libs.tee.steps import Note
from libs.tee.tdx_platform import TdxRules
from libs.tee.verified import VerifiedPlatform


class TeeTypeNotAllowed(MeshError):
    """Policy states no rules for this technology, so nothing made by it is accepted."""

    code = Code.PERMISSION_DENIED
    reason = "TEE_TYPE_NOT_ALLOWED"


@dataclass(frozen=True, slots=True)
class RoleRules:
    """Everything that one role's evidence must satisfy. A technology without rules is refused."""

    role: str
    tdx: TdxRules | None
    snp: SnpRules | None
    devices: Rule[Device]
    gpu: GpuRule | None
    gpu_required: bool
    # For nodes: model id to allowed weights digests. An id or digest that is not listed is refused.
    models: Mapping[str, frozenset[str]]

    def verify_quote(
        self, quote: bytes, endorsement: Collateral | SnpEndorsement, now: int, note: Note
    ) -> VerifiedPlatform:
        """Prove a quote under the rules for its technology. Raises `TeeTypeNotAllowed` where there are none."""
        if isinstance(endorsement, Collateral):
            if self.tdx is None:
                raise TeeTypeNotAllowed(f"policy accepts no TDX evidence for role {self.role}")
            return self.tdx.verify(quote, endorsement, now, note)
        if self.snp is None:
            raise TeeTypeNotAllowed(f"policy accepts no SEV-SNP evidence for role {self.role}")
        return self.snp.verify(quote, endorsement, now, note)
