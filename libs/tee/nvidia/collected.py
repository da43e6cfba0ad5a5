"""Responsible for GPU evidence as NVIDIA's `nvattest collect-evidence` prints it: what a dstack guest gives out.

Reading proves nothing. The reports go to the vendor's token service, and into the evidence beside its tokens.
"""

from __future__ import annotations

import base64
import re
from binascii import Error as Base64Error
from dataclasses import dataclass
from typing import Any

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee.nvidia.chain import MAX_CHAIN_BYTES
from libs.tee.nvidia.evidence import RawReport
from libs.tee.nvidia.report import MAX_REPORT_BYTES
from libs.tee.nvidia.token import MAX_DEVICES

FORMAT = "nvidia-nvattest-collect-evidence-json-v1"
MAX_BYTES = 2 * MAX_DEVICES * (MAX_REPORT_BYTES + MAX_CHAIN_BYTES)
_ARCHITECTURE = re.compile(r"[A-Z0-9_]{1,32}")


class CollectedMalformed(MeshError):
    """The guest's GPU evidence is not of the form that this mesh understands."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_COLLECTED_MALFORMED"


@dataclass(frozen=True, slots=True)
class Switches:
    """Every NVSwitch's answer to one nonce."""

    # As the token service names it, for example "LS10".
    architecture: str
    reports: tuple[RawReport, ...]


@dataclass(frozen=True, slots=True)
class Collected:
    """Every device's answer to one nonce."""

    # Of the GPUs, as the token service names it, for example "HOPPER".
    architecture: str
    # Of the GPUs.
    reports: tuple[RawReport, ...]
    # Where there are switches and somebody asked them; guest agents ask GPUs alone.
    switches: Switches | None = None


def read_collected(document: bytes) -> Collected:
    """Read the JSON that was printed. All GPUs MUST be of one architecture. Raises `CollectedMalformed`."""
    if len(document) > MAX_BYTES:
        raise CollectedMalformed(f"GPU evidence has at most {MAX_BYTES} bytes")
    try:
        entries = jcs.loads_object(document)["evidences"]
        if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_DEVICES:
            raise ValueError(f"1 to {MAX_DEVICES} GPUs are read")
        (architecture,) = {_architecture(entry["arch"]) for entry in entries}
        reports = tuple(_report(entry) for entry in entries)
    except (jcs.JsonMalformed, KeyError, TypeError, ValueError, Base64Error) as error:
        raise CollectedMalformed(f"the guest's GPU evidence is not understood: {error}") from error
    return Collected(architecture, reports)


def _architecture(value: Any) -> str:
    if not isinstance(value, str) or _ARCHITECTURE.fullmatch(value) is None:
        raise ValueError("a GPU of an unnamed architecture")
    return value


def _report(entry: Any) -> RawReport:
    report = base64.b64decode(entry["evidence"], validate=True)
    chain = base64.b64decode(entry["certificate"], validate=True).decode("ascii")
    if len(report) > MAX_REPORT_BYTES or len(chain) > MAX_CHAIN_BYTES:
        raise ValueError("a report or its chain is too long")
    return RawReport(report, chain)
