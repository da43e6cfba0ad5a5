"""Responsible for judging machine and code: steps 2 to 9 of an appraisal, for evidence of any binding.

The mesh's own evidence comes here through `libs.tee.appraisal`; an ACI report or a dstack certificate, whose quotes
bind other bytes, may come directly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from libs.errors import Code, MeshError
from libs.tee import eventlog, tdx
from libs.tee.collateral import Collateral
from libs.tee.eventlog import Event, Identity
from libs.tee.rules import DeviceRule, Measurement, RoleRules


class ComposeHashMismatch(MeshError):
    """The app-compose text is not the one that was measured."""

    code = Code.PERMISSION_DENIED
    reason = "COMPOSE_HASH_MISMATCH"


class MeasurementNotAllowed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "MEASUREMENT_NOT_ALLOWED"


class DeviceRevoked(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "DEVICE_REVOKED"


class DeviceNotListed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "DEVICE_NOT_LISTED"


@dataclass(frozen=True, slots=True)
class Platform:
    """What steps 2 to 9 prove about the machine and the code that it booted."""

    measurement: Measurement
    identity: Identity
    quote: tdx.VerifiedQuote
    valid_until: int


def appraise_platform(
    *,
    quote: bytes,
    event_log: tuple[Event, ...],
    app_compose: str,
    collateral: Collateral,
    verify_report_data: Callable[[bytes], None],
    rules: RoleRules,
    now: int,
) -> Platform:
    """Judge machine and code (steps 2 to 9) for evidence of any binding, for example an ACI report's.

    `verify_report_data` MUST raise unless the 64 bytes bind what the caller relies on: it is step 5. The quote is
    cut (`tdx.cut`).
    """
    # Step 2: quote signature and certificate chain to a root that policy names.
    verified = tdx.verify(quote, collateral, rules.vendor_roots, now)
    # Step 3: TCB status, advisories, collateral age.
    valid_until = tdx.judge_tcb(verified, rules.tcb, now)
    # Step 4: debug bit, SEAM signer, TD attributes, service TD.
    tdx.judge_td(verified.report, rules.td_attributes)
    # Step 5: binding.
    verify_report_data(verified.report.report_data)
    # Step 6: event log replayed; identity events once each and before `system-ready`.
    eventlog.verify_replay(event_log, verified.report.rtmrs)
    identity = eventlog.read_identity(event_log)
    # Step 7: the app-compose text is the measured one.
    if hashlib.sha256(app_compose.encode()).digest() != identity.compose_hash:
        raise ComposeHashMismatch("the app-compose text is not the one that was measured")
    # Step 8: code, system, key provider and registers, together, in the role's allow list.
    measurement = _measurement(verified.report, identity)
    _verify_measurement(measurement, rules)
    # Step 9: the machine.
    _verify_device(verified.device_id, rules.devices)
    return Platform(measurement, identity, verified, valid_until)


def _measurement(report: tdx.TdReport, identity: Identity) -> Measurement:
    return Measurement(
        compose_hash=identity.compose_hash.hex(),
        app_id=identity.app_id.hex(),
        os_image_hash=identity.os_image_hash.hex(),
        key_provider=hashlib.sha256(identity.key_provider).hexdigest(),
        mrtd=report.mrtd.hex(),
        rtmr0=report.rtmrs[0].hex(),
        rtmr1=report.rtmrs[1].hex(),
        rtmr2=report.rtmrs[2].hex(),
    )


def _verify_measurement(measurement: Measurement, rules: RoleRules) -> None:
    if measurement in rules.measurements:
        return
    found = measurement.to_json()
    # Name the difference to the nearest allowed entry, so that an operator sees what to allow or to rebuild.
    differences = min(
        ([name for name, value in allowed.to_json().items() if found[name] != value] for allowed in rules.measurements),
        key=len,
        default=["no measurement is allowed"],
    )
    raise MeasurementNotAllowed(
        f"policy does not allow this measurement for role {rules.role}: {', '.join(differences)}"
    )


def _verify_device(device_id: str, rule: DeviceRule) -> None:
    if device_id in rule.revoked:
        raise DeviceRevoked(f"machine {device_id} is revoked")
    if rule.allowed and device_id not in rule.allowed:
        raise DeviceNotListed(f"policy lists machines, and {device_id} is none of them")
