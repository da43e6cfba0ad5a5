"""Responsible for the values that policy states about SEV-SNP evidence. They only say; `libs.tee.snp.judgement` judges.

The defaults refuse what weakens a guest's isolation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from libs.tee.snp.report import PlatformFlag, Product, Tcb


@dataclass(frozen=True, slots=True)
class SnpMeasurement:
    """One allowed combination of code and launch; the four, lower-case hex, are compared together."""

    # SHA-256 of the app-compose text, which the host states as HOST_DATA. The launch digest does not cover it: the
    # measured system MUST compare it with the text that it starts.
    compose_hash: str
    launch_digest: str
    # Zeros without an ID block. Otherwise the ID block's words, worth as much as the key that signed it.
    family_id: str
    image_id: str

    def to_json(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class SnpRule:
    """Which machines and launches are accepted. Debugging and migration agents never are."""

    # Least patch levels per product. A product that is not listed is refused.
    minimum_tcb: Mapping[Product, Tcb]
    maximum_crl_age_seconds: int
    # Least firmware ABI (major, minor) that the guest's policy must demand.
    minimum_abi: tuple[int, int] = (0, 0)
    # Whether the guest's policy may let threads of others share its cores.
    allow_smt: bool = False
    # Whether the guest's policy may let its memory lie behind CXL.
    allow_cxl: bool = False
    require_single_socket: bool = False
    # How the host must run. Without the alias check its owner can have memory answer at two addresses.
    required_platform: PlatformFlag = PlatformFlag.ALIAS_CHECK_COMPLETE
    # Privilege levels of the guest from which a report is accepted. At level 0 runs what was launched first.
    vmpls: frozenset[int] = frozenset({0})
    # SHA-384 digests, lower-case hex, of keys that may sign an ID block, and that may certify such a key. Anybody can
    # make an ID block, so one by a key that is not listed is refused; having none is not.
    id_keys: frozenset[str] = frozenset()
    author_keys: frozenset[str] = frozenset()
    # Only an ID block states more than 0.
    minimum_guest_svn: int = 0
