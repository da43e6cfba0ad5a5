"""The guest agent's methods: responsible for JSON in, a TD's answer out, as dstack 0.5 answers them.

Names, defaults and reply members are dstack's. What this agent cannot do faithfully it refuses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from libs.errors import Code, MeshError
from services.devtee import secp256k1
from services.devtee.attestation import attestation_blob
from services.devtee.gpus import EVIDENCE_FORMAT
from services.devtee.machine import VirtualTd, pad_report_data
from services.devtee.tls import TlsRequest, issue_tls_key

VERSION = "0.5.11"
_SIGNING_PATH, _SIGNING_PURPOSE = "vms", "signing"

Request = Mapping[str, Any]
Method = Callable[[Request], Any]


class GuestRequestInvalid(MeshError):
    """A request has a missing, mistyped or unusable member."""

    code = Code.INVALID_ARGUMENT
    reason = "GUEST_REQUEST_INVALID"


class GuestMethods:
    """One TD's methods by name. Not safe to call from two threads at once."""

    def __init__(self, td: VirtualTd, clock: Callable[[], int]) -> None:
        self._td = td
        self._clock = clock
        self._app_certificate = issue_tls_key(td, TlsRequest("teemesh development guest", ra_tls=True), clock()).chain[
            0
        ]
        self.table: Mapping[str, Method] = {
            "GetKey": self._get_key,
            "GetTlsKey": self._get_tls_key,
            "GetQuote": self._get_quote,
            "Attest": self._attest,
            "Info": self._info,
            "EmitEvent": self._emit_event,
            "Sign": self._sign,
            "Verify": self._verify,
            "Version": self._version,
            # Of dstack 0.6, which serves it beside everything above.
            "v1/AttestGpu": self._attest_gpu,
        }

    def _get_key(self, request: Request) -> Any:
        try:
            derived = self._td.keys.derive(
                _text(request, "path"), _text(request, "purpose"), _text(request, "algorithm")
            )
        except ValueError as error:
            raise GuestRequestInvalid(str(error)) from error
        return {"key": derived.key.hex(), "signature_chain": [link.hex() for link in derived.signature_chain]}

    def _get_tls_key(self, request: Request) -> Any:
        if _flag(request, "with_app_info", False):
            raise GuestRequestInvalid("with_app_info is not offered by the development guest agent")
        wanted = TlsRequest(
            subject=_text(request, "subject"),
            alt_names=_texts(request, "alt_names"),
            ra_tls=_flag(request, "usage_ra_tls", False),
            server_auth=_flag(request, "usage_server_auth", False),
            client_auth=_flag(request, "usage_client_auth", False),
            not_before=_time(request, "not_before"),
            not_after=_time(request, "not_after"),
        )
        try:
            issued = issue_tls_key(self._td, wanted, self._clock())
        except ValueError as error:
            raise GuestRequestInvalid(f"no certificate can say this: {error}") from error
        return {"key": issued.key, "certificate_chain": list(issued.chain)}

    def _get_quote(self, request: Request) -> Any:
        report_data = _octets(request, "report_data")
        quote = self._td.quote(report_data)
        return {
            "quote": quote.hex(),
            "event_log": json.dumps(self._event_log()),
            "report_data": pad_report_data(report_data).hex(),
            "vm_config": self._td.machine.image.vm_config,
        }

    def _attest(self, request: Request) -> Any:
        return {"attestation": attestation_blob(self._td, _octets(request, "report_data")).hex()}

    def _info(self, _request: Request) -> Any:
        td, image = self._td, self._td.machine.image
        hashes = {
            "mr_aggregated": td.mr_aggregated.hex(),
            "os_image_hash": image.os_image_hash.hex(),
            "compose_hash": td.compose_hash.hex(),
            "device_id": td.machine.device_id.hex(),
        }
        tcb_info = {
            "mrtd": image.mrtd.hex(),
            **{f"rtmr{index}": register.hex() for index, register in enumerate(td.rtmrs)},
            **hashes,
            "app_compose": td.app_compose,
            "event_log": self._event_log(),
        }
        return {
            "app_id": td.identity.app_id.hex(),
            "instance_id": td.identity.instance_id.hex(),
            "app_cert": self._app_certificate,
            "tcb_info": json.dumps(tcb_info),
            "app_name": td.app_name,
            **hashes,
            "key_provider_info": td.machine.kms.provider,
            "vm_config": image.vm_config,
            "cloud_vendor": "teemesh",
            "cloud_product": "development",
        }

    def _emit_event(self, request: Request) -> Any:
        self._td.emit(_text(request, "event"), _octets(request, "payload"))
        return {}

    def _sign(self, request: Request) -> Any:
        algorithm, data = _text(request, "algorithm"), _octets(request, "data")
        derived = self._td.keys.derive(
            _SIGNING_PATH, _SIGNING_PURPOSE, "ed25519" if algorithm == "ed25519" else "secp256k1"
        )
        if algorithm == "ed25519":
            signature = Ed25519PrivateKey.from_private_bytes(derived.key).sign(data)
        else:
            signature = secp256k1.sign_plain(derived.key, _digest(algorithm, data))
        return {
            "signature": signature.hex(),
            "signature_chain": [link.hex() for link in (signature, *derived.signature_chain)],
            "public_key": derived.public_key.hex(),
        }

    def _verify(self, request: Request) -> Any:
        algorithm, data = _text(request, "algorithm"), _octets(request, "data")
        signature, public_key = _octets(request, "signature"), _octets(request, "public_key")
        if len(signature) not in ((64,) if algorithm == "ed25519" else (64, 65)):
            raise GuestRequestInvalid("the signature has the wrong length")
        try:
            if algorithm == "ed25519":
                valid = _is_ed25519_signed(public_key, data, signature)
            else:
                valid = secp256k1.is_signed(public_key, _digest(algorithm, data), signature)
        except ValueError as error:
            raise GuestRequestInvalid("the public key is not one of this algorithm") from error
        return {"valid": valid}

    def _version(self, _request: Request) -> Any:
        return {"version": VERSION, "rev": "teemesh-development"}

    def _attest_gpu(self, request: Request) -> Any:
        try:
            evidence = self._td.machine.gpus.evidence(_octets(request, "nonce"))
        except ValueError as error:
            raise GuestRequestInvalid(f"nonce must be exactly 32 bytes: {error}") from error
        return {"bundles": [{"vendor": "nvidia", "format": EVIDENCE_FORMAT, "evidence": evidence.hex()}]}

    def _event_log(self) -> list[dict[str, int | str]]:
        return [event.to_json() for event in self._td.events]


def _digest(algorithm: str, data: bytes) -> bytes:
    match algorithm:
        case "secp256k1":
            return sha256(data).digest()
        case "secp256k1_prehashed":
            if len(data) != 32:
                raise GuestRequestInvalid("prehashed data must be 32 bytes long")
            return data
        case _:
            raise GuestRequestInvalid("unsupported algorithm")


def _is_ed25519_signed(public_key: bytes, data: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _text(request: Request, name: str) -> str:
    value = request.get(name, "")
    if not isinstance(value, str):
        raise GuestRequestInvalid(f"{name} must be a string")
    return value


def _texts(request: Request, name: str) -> tuple[str, ...]:
    value = request.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise GuestRequestInvalid(f"{name} must be a list of strings")
    return tuple(value)


def _octets(request: Request, name: str) -> bytes:
    try:
        return bytes.fromhex(_text(request, name).removeprefix("0x"))
    except ValueError as error:
        raise GuestRequestInvalid(f"{name} must be hexadecimal") from error


def _flag(request: Request, name: str, default: bool) -> bool:
    value = request.get(name, default)
    if not isinstance(value, bool):
        raise GuestRequestInvalid(f"{name} must be true or false")
    return value


def _time(request: Request, name: str) -> int | None:
    value = request.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise GuestRequestInvalid(f"{name} must be a time in Unix seconds")
    return value
