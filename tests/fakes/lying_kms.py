"""A KMS of the right code and the right CA that says something else of a signature than is so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any

from teemesh.kms.v1.kms_pb2 import SignWithKeyRequest, SignWithKeyResponse

from libs.policy.custody import KeyUse, sign_key_use, verify_key_use
from libs.rpc.calls import Context
from services.kms.servicer import KmsServicer
from tests.fakes.joined_mesh import KmsCore

Bend = Callable[[bytes, KeyUse], tuple[bytes, KeyUse]]
"""From the true signature and statement to those that come instead."""


class LyingKms(KmsServicer):
    def __init__(self, *parts: Any, kms: KmsCore, bend: Bend) -> None:
        super().__init__(*parts)
        self._kms = kms
        self._bend = bend

    async def SignWithKey(self, request: SignWithKeyRequest, context: Context) -> SignWithKeyResponse:  # noqa: N802
        answer = await super().SignWithKey(request, context)
        use = verify_key_use(answer.statement, answer.statement_signature, self._kms.ca.spki)
        signature, said = self._bend(answer.signature, use)
        return SignWithKeyResponse(
            signature=signature, statement=said.document, statement_signature=sign_key_use(said, self._kms.ca.key)
        )


def saying(**changes: Any) -> Bend:
    return lambda signature, use: (signature, replace(use, **changes))


def with_signature(other: bytes) -> Bend:
    return lambda signature, use: (other, replace(use, signature_sha256=sha256(other).digest()))
