"""Responsible for the numbered steps of an appraisal, in one function, for evidence of any technology and binding.

The mesh's own evidence comes here through `libs.tee.appraisal`; an ACI report or a dstack certificate, whose quotes
bind other bytes, comes directly.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

from libs.errors import Code, MeshError
from libs.tee.eventlog import Event, Identity
from libs.tee.measurement import Measured
from libs.tee.role import RoleRules
from libs.tee.steps import SILENT, Note, Steps
from libs.tee.verified import VerifiedPlatform


class ComposeHashMismatch(MeshError):
    """The app-compose text is not the one that was measured."""

    code = Code.PERMISSION_DENIED
    reason = "COMPOSE_HASH_MISMATCH"


class Presented(Protocol):
    """Evidence that was parsed, step 1, and what its own form says of binding, GPU and claims."""

    @property
    def event_log(self) -> tuple[Event, ...]: ...

    @property
    def app_compose(self) -> str | None:
        """The text that was measured; None where the form does not carry it, as a dstack certificate does not."""
        ...

    def verify_quote(self, rules: RoleRules, now: int, note: Note) -> VerifiedPlatform:
        """Prove the quote under the rules for its technology."""
        ...

    def verify_binding(self, report_data: bytes, now: int, note: Note) -> None:
        """MUST raise unless the 64 bytes bind what the caller relies on."""
        ...

    def verify_gpu(self, rules: RoleRules, now: int, note: Note) -> int:
        """Return until when the GPU evidence holds, or raise that the role needs what is not proven."""
        ...

    def verify_claims(self, rules: RoleRules, identity: Identity, note: Note) -> None:
        """Raise unless what the evidence claims is acceptable to policy, and is not another than was measured."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the steps prove about the machine and the code that it booted."""

    platform: VerifiedPlatform
    identity: Identity
    measurement: Measured
    # Unix seconds.
    valid_until: int


def judge(presented: Presented, rules: RoleRules, now: int, steps: Steps = SILENT) -> Verdict:
    """Judge parsed evidence, step by step; the first step that fails refuses, and so does one that cannot be evaluated.

    Step 1, size and shape, is what parsing proved: there is no other way to a presented value.
    """
    with steps.step(2) as note:
        platform = presented.verify_quote(rules, now, note)
    with steps.step(3) as note:
        tcb_until = platform.judge_tcb(now, note)
    with steps.step(4) as note:
        platform.judge_guest(note)
    with steps.step(5) as note:
        presented.verify_binding(platform.report_data, now, note)
    with steps.step(6) as note:
        identity = platform.identify(presented.event_log, note)
    with steps.step(7) as note:
        _verify_compose(presented.app_compose, identity, note)
    with steps.step(8) as note:
        measurement, measurement_until = platform.judge_measurement(identity, now, note)
    with steps.step(9) as note:
        device_until = rules.devices.holds_until(platform.device, now, note)
    with steps.step(10) as note:
        gpu_until = presented.verify_gpu(rules, now, note)
    with steps.step(11) as note:
        presented.verify_claims(rules, identity, note)
    return Verdict(platform, identity, measurement, min(tcb_until, measurement_until, device_until, gpu_until))


def _verify_compose(app_compose: str | None, identity: Identity, note: Note) -> None:
    if app_compose is None:
        # Step 8 still compares the measured hash with the allow list; only its text is not known here.
        note("app-compose text", "not part of this form", identity.compose_hash)
        return
    actual = hashlib.sha256(app_compose.encode()).digest()
    note("SHA-256 of the app-compose text", actual, identity.compose_hash)
    if actual != identity.compose_hash:
        raise ComposeHashMismatch("the app-compose text is not the one that was measured")
