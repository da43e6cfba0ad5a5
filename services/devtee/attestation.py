"""Responsible for dstack's versioned attestation blob, SCALE version 0, for TDX."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from services.devtee.eventlog import Event
from services.devtee.machine import VirtualTd, pad_report_data

_VERSION_SCALE = 0
_PLATFORM_TDX = 0


def attestation_blob(td: VirtualTd, report_data: bytes, *, whole_log: bool = True) -> bytes:
    """Quote and log in one value. Raises `ReportDataInvalid`.

    Certificates carry the runtime events alone (`whole_log=False`), for size.
    """
    events = td.events if whole_log else td.runtime_events
    return b"".join(
        (
            bytes([_VERSION_SCALE, _PLATFORM_TDX]),
            _vector(td.quote(report_data)),
            _list(_tdx_event(event) for event in events),
            _list(_vector(event.name.encode()) + _vector(event.payload) for event in td.runtime_events),
            pad_report_data(report_data),
            _vector(td.machine.image.vm_config.encode()),
        )
    )


def _tdx_event(event: Event) -> bytes:
    return (
        struct.pack("<II", event.imr, event.event_type)
        + _vector(event.digest)
        + _vector(event.name.encode())
        + _vector(event.payload)
    )


def _list(items: Iterable[bytes]) -> bytes:
    encoded = list(items)
    return compact(len(encoded)) + b"".join(encoded)


def _vector(content: bytes) -> bytes:
    return compact(len(content)) + content


def compact(value: int) -> bytes:
    """SCALE's compact form of an integer below 2^30, which no part of a 10 MiB blob exceeds."""
    if value < 1 << 6:
        return bytes([value << 2])
    if value < 1 << 14:
        return struct.pack("<H", value << 2 | 1)
    return struct.pack("<I", value << 2 | 2)
