"""Responsible for what every TEE technology answers to: the form in which the numbered steps meet TDX and SEV-SNP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from libs.tee.device import Device
from libs.tee.eventlog import Event, Identity
from libs.tee.measurement import Measured
from libs.tee.steps import Note


@dataclass(frozen=True, slots=True)
class Tcb:
    """The patch level of a platform."""

    # In the vendor's words.
    status: str
    advisories: tuple[str, ...]
    up_to_date: bool
    # Whether the vendor says so, or the verifier concludes it from policy.
    vendor_says: bool = True


class VerifiedPlatform(Protocol):
    """A platform whose signature holds under a root of policy, together with the rules that it is judged by."""

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the guest chose."""
        ...

    @property
    def device(self) -> Device: ...

    @property
    def tcb(self) -> Tcb: ...

    @property
    def vendor_root_sha256(self) -> bytes: ...

    def judge_tcb(self, now: int, note: Note) -> int:
        """Return until when (unix seconds) the patch level satisfies policy, or raise why it does not."""
        ...

    def judge_guest(self, note: Note) -> None:
        """Refuse a guest that its host can look into, move or steer."""
        ...

    def identify(self, event_log: tuple[Event, ...], note: Note) -> Identity:
        """Return what the boot measured about itself, once the log is proven to be what was measured."""
        ...

    def judge_measurement(self, identity: Identity, now: int, note: Note) -> tuple[Measured, int]:
        """Return the measurement and until when policy allows it, or raise that it does not."""
        ...
