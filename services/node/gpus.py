"""It is responsible for which GPUs this node's receipts name: those of the evidence that it is served under."""

from __future__ import annotations

from collections.abc import Callable

from libs.aci.receipt_gpus import listed
from libs.tee.evidence import Evidence


class EvidencedGpus:
    """Says it of the evidence of now, and reads each document once."""

    def __init__(self, evidence: Callable[[], Evidence]) -> None:
        """The evidence MUST be one that was appraised, as that which a certificate names was."""
        self._evidence = evidence
        self._read: tuple[bytes, str | None] = b"", None

    def named(self) -> str | None:
        """Return what a receipt says of them, None where the evidence shows none. Raises `TokenMalformed`."""
        evidence = self._evidence()
        digest, named = self._read
        if digest != evidence.digest:
            named = listed(evidence.gpu_ueids)
            self._read = evidence.digest, named
        return named
