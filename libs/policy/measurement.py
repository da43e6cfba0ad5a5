"""It is responsible for reading the measurement of a TD, as roles and foreign providers list them."""

from __future__ import annotations

from libs.policy.members import Members
from libs.tee.measurement import Measurement


def read_measurement(members: Members) -> Measurement:
    """Read one entry of a list of measurements."""
    measurement = Measurement(
        compose_hash=members.hexadecimal("compose_hash", 32),
        app_id=members.hexadecimal("app_id", 20),
        os_image_hash=members.hexadecimal("os_image_hash", 32),
        key_provider=members.hexadecimal("key_provider", 32),
        mrtd=members.hexadecimal("mrtd", 48),
        rtmr0=members.hexadecimal("rtmr0", 48),
        rtmr1=members.hexadecimal("rtmr1", 48),
        rtmr2=members.hexadecimal("rtmr2", 48),
    )
    members.end()
    return measurement
