"""It is responsible for asking NSCQ (libnvidia-nscq) about NVSwitches. Only the collector's process loads it.

There are no bindings of NVIDIA's by themselves, so the few calls are declared here: sizes and types are those of
`nscq_attestation.h` in NVIDIA/nvtrust. Answers come by callback, structures by value.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from libs.gpus.answer import Device, LibraryMissing, LibraryRefused
from libs.tee.nvidia.evidence import RawReport

_LIBRARY = "libnvidia-nscq.so.2"
_MOUNT_DEVICES = 1
_UUIDS = b"/drv/nvswitch/{device}/uuid"
_ARCHITECTURE = b"/{nvswitch}/id/arch"
_REPORT, _CHAIN = "/config/attestation_report", "/config/certificate"
_ARCHITECTURES = {2: "LS10"}


class Uuid(ctypes.Structure):
    """`nscq_uuid_t`."""

    _fields_ = (("octets", ctypes.c_uint8 * 16),)


class Label(ctypes.Structure):
    """`nscq_label_t`."""

    _fields_ = (("data", ctypes.c_char * 64),)


class Report(ctypes.Structure):
    """`nscq_attestation_report_t`."""

    _fields_ = (("report_size", ctypes.c_uint32), ("report", ctypes.c_uint8 * 0x2000))


class Certificate(ctypes.Structure):
    """`nscq_attestation_certificate_t`."""

    _fields_ = (("cert_chain", ctypes.c_uint8 * 0x1400), ("cert_chain_size", ctypes.c_uint32))


class _Session(ctypes.Structure):
    _fields_ = (("code", ctypes.c_int8), ("session", ctypes.c_void_p))


def callback(answered: Any) -> Any:
    """Return the type of a callback that is given device, code, one answer and user data."""
    return ctypes.CFUNCTYPE(None, ctypes.POINTER(Uuid), ctypes.c_int8, answered, ctypes.c_void_p)


def report_of(answered: Report) -> bytes:
    """Return the signed report. Raises `LibraryRefused` for a size that the structure cannot have."""
    return _cut(answered.report, answered.report_size, "report")


def chain_of(answered: Certificate) -> str:
    """Return the PEM chain. Raises `LibraryRefused` for a size that the structure cannot have, or what is not ASCII."""
    try:
        return _cut(answered.cert_chain, answered.cert_chain_size, "certificate chain").rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise LibraryRefused("a switch's certificate chain is not PEM") from error


class Nscq:
    """An open session."""

    def __init__(self, library: Any, session: int) -> None:
        self._library = library
        self._session = ctypes.c_void_p(session)

    def switches(self, nonce: bytes | None) -> tuple[Device, ...]:
        """Return every switch; with a nonce of 32 bytes, each with its answer. One that does not answer raises."""
        names = [self._name(uuid) for uuid in self._answers(_UUIDS, ctypes.POINTER(Uuid), _copy)]
        if not names:
            return ()
        (kind,) = set(self._answers(_ARCHITECTURE, ctypes.c_int8, int)) or {None}
        if kind not in _ARCHITECTURES:
            raise LibraryRefused(f"NVSwitches of architecture {kind}, which is not attested here")
        return tuple(Device(name, "", _ARCHITECTURES[kind], self._answer(name, nonce)) for name in names)

    def _answer(self, name: str, nonce: bytes | None) -> RawReport | None:
        if nonce is None:
            return None
        asked = (ctypes.c_uint8 * len(nonce))(*nonce)
        _require(self._library.nscq_session_set_input(self._session, 0, ctypes.byref(asked), len(nonce)), "its nonce")
        (report,) = self._answers(f"/{name}{_REPORT}".encode(), Report, report_of)
        (chain,) = self._answers(f"/{name}{_CHAIN}".encode(), Certificate, chain_of)
        return RawReport(report, chain)

    def _answers(self, path: bytes, answered: Any, read: Any) -> list[Any]:
        """Return what is said at a path, read while it is there: what a callback is given ends with it."""
        found: list[Any] = []
        failed: list[str] = []

        def take(_device: Any, code: int, said: Any, _data: Any) -> None:
            # Nothing that is raised here would come any further.
            try:
                _require(code, path.decode())
                found.append(read(said))
            except LibraryRefused as error:
                failed.append(str(error))

        taking = callback(answered)(take)
        _require(self._library.nscq_session_path_observe(self._session, path, taking, None, 0), path.decode())
        if failed or (not found and path != _UUIDS):
            raise LibraryRefused(failed[0] if failed else f"NSCQ says nothing of {path.decode()}")
        return found

    def _name(self, uuid: Uuid) -> str:
        label = Label()
        _require(self._library.nscq_uuid_to_label(ctypes.byref(uuid), ctypes.byref(label), 0), "a switch's name")
        return str(label.data.decode("ascii", "replace"))


@contextmanager
def opened() -> Iterator[Nscq]:
    """Load the library and begin. Raises `LibraryMissing`, or `LibraryRefused` as does every failing call inside."""
    try:
        library: Any = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise LibraryMissing(f"there are NVSwitches, and {_LIBRARY} is not installed") from error
    for name in ("nscq_session_path_observe", "nscq_session_set_input", "nscq_uuid_to_label"):
        getattr(library, name).restype = ctypes.c_int8
    library.nscq_session_create.restype = _Session
    begun = library.nscq_session_create(_MOUNT_DEVICES)
    _require(begun.code, "a session")
    try:
        yield Nscq(library, begun.session)
    finally:
        library.nscq_session_destroy(ctypes.c_void_p(begun.session))


def _copy(shown: Any) -> Uuid:
    return Uuid.from_buffer_copy(shown.contents)


def _require(code: int, what: str) -> None:
    if code != 0:
        raise LibraryRefused(f"NSCQ: code {code} for {what}")


def _cut(array: Any, size: int, what: str) -> bytes:
    if not 0 < size <= len(array):
        raise LibraryRefused(f"a switch's {what} of {size} bytes")
    return bytes(memoryview(array)[:size])
