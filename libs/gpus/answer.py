"""It is responsible for what the collector's process and its parent say to each other: lines of JSON, bounded.

A request is a nonce in hex, or nothing but the end of the line: then only what there is, and in which mode, is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from libs import jcs
from libs.errors import Code, MeshError
from libs.gpus.mode import Mode
from libs.gpus.observed import Observed
from libs.tee import shape
from libs.tee.nvidia.chain import MAX_CHAIN_BYTES
from libs.tee.nvidia.evidence import RawReport
from libs.tee.nvidia.report import MAX_REPORT_BYTES
from libs.tee.nvidia.token import MAX_DEVICES

MAX_LINE_BYTES = 2 * MAX_DEVICES * (2 * MAX_REPORT_BYTES + MAX_CHAIN_BYTES) + 64 * 1024
_MEMBERS = frozenset({"mode", "driver", "gpus", "switches", "bound_gpus", "bound_switches", "errors"})
_MODE_MEMBERS = frozenset(Mode.__dataclass_fields__)
_DEVICE_MEMBERS = frozenset({"id", "address", "architecture", "report", "certificate_chain"})
_REFUSAL_MEMBERS = frozenset({"refused", "detail"})
_LONGEST_TEXT = 256


class AnswerMalformed(MeshError):
    """The collector's process says what this mesh does not understand."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_COLLECTOR_MALFORMED"


class LibraryMissing(MeshError):
    """A library of NVIDIA's, or the bindings to it, are not installed here."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_LIBRARY_MISSING"


class LibraryRefused(MeshError):
    """A call of NVIDIA's libraries failed."""

    code = Code.UNAVAILABLE
    reason = "GPU_LIBRARY_REFUSED"


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU or an NVSwitch."""

    id: str
    """As the library names it."""
    address: str
    """Of a GPU on the PCI bus, as in "0000:01:00.0"; empty for a switch, whose library does not say."""
    architecture: str
    """As the vendor's token service names it, for example "HOPPER"."""
    raw: RawReport | None = None
    """What it answered; None where nothing was asked."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What there is, and what it answered."""

    mode: Mode
    driver: str
    gpus: tuple[Device, ...]
    switches: tuple[Device, ...]
    bound_gpus: Mapping[str, str]
    bound_switches: Mapping[str, str]
    errors: int
    """How many errors of GPUs (Xid) the driver has told this process of."""

    def observed(self, process: str) -> Observed:
        """Sum up; `process` names the collector's process, which may have missed what was before it."""
        named = [f"{device.id} {self.bound_gpus.get(device.address, '')} driver {self.driver}" for device in self.gpus]
        named += [f"{device.id} driver {self.driver}" for device in self.switches]
        named += [f"{address} {link}" for address, link in self.bound_switches.items()]
        return Observed(frozenset(named), f"{process} {self.errors}")


def encode(answer: Answer) -> bytes:
    """Return the line, its end included."""
    document = {
        "mode": asdict(answer.mode),
        "driver": answer.driver,
        "gpus": [_document(device) for device in answer.gpus],
        "switches": [_document(device) for device in answer.switches],
        "bound_gpus": dict(answer.bound_gpus),
        "bound_switches": dict(answer.bound_switches),
        "errors": answer.errors,
    }
    return jcs.dumps(document) + b"\n"


def encode_refusal(refusal: LibraryMissing | LibraryRefused) -> bytes:
    """Return the line that says why nobody can be asked."""
    return jcs.dumps({"refused": refusal.reason, "detail": str(refusal)[:_LONGEST_TEXT]}) + b"\n"


def decode(line: bytes) -> Answer:
    """Read a line. Raises `LibraryMissing` or `LibraryRefused` if that is what it says, or `AnswerMalformed`."""
    if len(line) > MAX_LINE_BYTES:
        raise AnswerMalformed(f"the collector's answer has more than {MAX_LINE_BYTES} bytes")
    try:
        document = jcs.loads_object(line)
        if document.keys() == _REFUSAL_MEMBERS:
            detail = _text(document["detail"], "detail")
            raise LibraryMissing(detail) if document["refused"] == LibraryMissing.reason else LibraryRefused(detail)
        fields = shape.members(document, _MEMBERS, "answer")
        mode = shape.members(fields["mode"], _MODE_MEMBERS, "mode")
        return Answer(
            mode=Mode(**{name: shape.integer(value, name) for name, value in mode.items()}),
            driver=_text(fields["driver"], "driver"),
            gpus=_devices(fields["gpus"], "gpus"),
            switches=_devices(fields["switches"], "switches"),
            bound_gpus=_links(fields["bound_gpus"], "bound_gpus"),
            bound_switches=_links(fields["bound_switches"], "bound_switches"),
            errors=shape.integer(fields["errors"], "errors"),
        )
    except (jcs.JsonMalformed, ValueError) as error:
        raise AnswerMalformed(f"the collector's answer is not understood: {error}") from error


def _document(device: Device) -> dict[str, Any]:
    raw = device.raw
    return {
        "id": device.id,
        "address": device.address,
        "architecture": device.architecture,
        "report": None if raw is None else raw.report.hex(),
        "certificate_chain": None if raw is None else raw.certificate_chain,
    }


def _devices(value: Any, what: str) -> tuple[Device, ...]:
    if not isinstance(value, list) or len(value) > MAX_DEVICES:
        raise ValueError(f"{what} is a list of at most {MAX_DEVICES}")
    return tuple(_device(each) for each in value)


def _device(value: Any) -> Device:
    fields = shape.members(value, _DEVICE_MEMBERS, "device")
    name, address, architecture = (_text(fields[each], each) for each in ("id", "address", "architecture"))
    if fields["report"] is None and fields["certificate_chain"] is None:
        return Device(name, address, architecture)
    report = shape.binary(fields["report"], "report")
    chain = shape.text(fields["certificate_chain"], "certificate_chain")
    if len(report) > MAX_REPORT_BYTES or len(chain) > MAX_CHAIN_BYTES:
        raise ValueError("a report or its chain is too long")
    return Device(name, address, architecture, RawReport(report, chain))


def _links(value: Any, what: str) -> Mapping[str, str]:
    if not isinstance(value, dict) or len(value) > 2 * MAX_DEVICES:
        raise ValueError(f"{what} is an object of at most {2 * MAX_DEVICES} members")
    return {_text(address, what): _text(link, what) for address, link in value.items()}


def _text(value: Any, what: str) -> str:
    text = shape.text(value, what)
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"{what} has more than {_LONGEST_TEXT} characters")
    return text
