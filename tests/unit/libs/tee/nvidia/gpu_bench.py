"""Development GPUs, a token service that verifies them, and a rule that accepts exactly them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from libs.tee.nvidia.evidence import GpuEvidence, GpuRule
from libs.tee.nvidia.keys import Issuer, Keyring
from services.devtee.findings import PostedReport
from services.devtee.gpu import Gpu, GpuVendor, ReportShape, sign_raw
from services.devtee.nras import ABSENT, ISSUER, Nras, TokenShape

NOW = 1_790_000_000
NONCE = hashlib.sha256(b"the challenge").digest()
MAXIMUM_AGE = 600

Sign = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True, slots=True)
class GpuBench:
    vendor: GpuVendor
    gpus: tuple[Gpu, Gpu]
    nras: Nras
    rule: GpuRule

    @classmethod
    def create(cls) -> GpuBench:
        vendor = GpuVendor.create(NOW)
        nras = Nras.create(vendor.root.certificate, NOW)
        rule = GpuRule(
            issuers={ISSUER: Issuer({}, (nras.authority.root.der,))},
            device_roots=(vendor.root.der,),
            allowed_ueids=frozenset(),
            revoked_ueids=frozenset(),
            allowed_models=frozenset(),
            maximum_token_age_seconds=MAXIMUM_AGE,
            reports_required=False,
        )
        return cls(vendor, (vendor.make_gpu(NOW), vendor.make_gpu(NOW)), nras, rule)

    def posted(
        self, nonce: bytes = NONCE, shape: ReportShape | None = None, gpus: Sequence[Gpu] | None = None
    ) -> list[PostedReport]:
        return [PostedReport(gpu.report(nonce, shape), gpu.chain.encode()) for gpu in gpus or self.gpus]

    @property
    def keys(self) -> dict[str, list[str]]:
        """The certificates of the service's key, as evidence brings them along."""
        return {self.nras.key_id: [certificate.hex() for certificate in self.nras.signing.chain]}

    def keyring(self, issuers: Mapping[str, Issuer] | None = None, now: int = NOW) -> Keyring:
        chains = {self.nras.key_id: self.nras.signing.chain}
        return Keyring(self.rule.issuers if issuers is None else issuers, chains, now)

    def bundle(self, shape: TokenShape | None = None) -> list[Any]:
        return self.nras.attest(self.posted(), NONCE, NOW, shape)

    def switch_bundle(self, shape: TokenShape) -> list[Any]:
        """What the service answers about the switches alone."""
        return self.nras.attest([], NONCE, NOW, shape)

    def evidence(
        self, shape: TokenShape | None = None, reports: Sequence[PostedReport] = (), token: Any = None
    ) -> GpuEvidence:
        """Evidence of both GPUs; with switches in the shape, of these too, in a bundle of their own."""
        shape = shape or TokenShape()
        return GpuEvidence.parse(
            {
                "v": 1,
                "vendor": "nvidia",
                "token": self.bundle(replace(shape, switches=())) if token is None else token,
                "switch_token": self.switch_bundle(shape) if shape.switches else None,
                "keys": self.keys,
                "reports": [
                    {"report": each.report.hex(), "certificate_chain": each.certificate_chain.decode()}
                    for each in reports
                ],
            }
        )

    def changed(self, **changes: Any) -> GpuRule:
        return replace(self.rule, **changes)

    def forged(
        self,
        *,
        overall: Mapping[str, Any] | None = None,
        device: Mapping[str, Any] | None = None,
        sign_overall: Sign | None = None,
        sign_device: Sign | None = None,
    ) -> list[Any]:
        """A good bundle in which GPU-0's or the overall claims are changed, then signed anew, or otherwise."""
        bundle = self.bundle()
        tokens = dict(bundle[1])
        tokens["GPU-0"] = (sign_device or self.nras.sign)(edited(read_claims(tokens["GPU-0"]), device or {}))
        submods = {
            name: ["DIGEST", ["SHA256", hashlib.sha256(token.encode()).hexdigest()]] for name, token in tokens.items()
        }
        claims = edited({**read_claims(bundle[0][1]), "submods": submods}, overall or {})
        return [["JWT", (sign_overall or self.nras.sign)(claims)], tokens]


def edited(claims: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**claims, **changes}.items() if value is not ABSENT}


def read_claims(token: str) -> dict[str, Any]:
    segment = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    return claims


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def segments(header: Any, claims: Any) -> str:
    """The part of a token that is signed; bytes go in as they are."""
    parts = (part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, claims))
    return ".".join(base64url(part) for part in parts)


def signer(key: ec.EllipticCurvePrivateKey, header: Any) -> Sign:
    """Sign claims with this key under this header, whatever it says."""

    def sign(claims: Mapping[str, Any]) -> str:
        signed = segments(header, claims)
        return f"{signed}.{base64url(sign_raw(key, signed.encode()))}"

    return sign
