"""Signing keys as NVIDIA's attestation service really certifies them: one day's key set entry, without its root.

Both certificates are as `https://nras.attestation.nvidia.com/.well-known/jwks.json` published them in August 2026.
"""

from __future__ import annotations

import base64
import hashlib
from calendar import timegm

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from libs.errors import MeshError
from libs.tee.nvidia.keys import verify_key_chain

# NVIDIA Attestation Service GPU GH100: P-384, signed with RSA over SHA-256.
_LEAF = base64.b64decode(
    "MIIDDjCCAfagAwIBAgIUdZ/LCJzG7ej2EjSiVTutJUwx/eowDQYJKoZIhvcNAQELBQAwZDE4MDYGA1UEAwwvTlZJRElBIEF0dGVzdGF0"
    "aW9uIFNlcnZpY2UgR1BVIEludGVybWVkaWF0ZSAwMDQxGzAZBgNVBAoMEk5WSURJQSBDb3Jwb3JhdGlvbjELMAkGA1UEBhMCVVMwHhcN"
    "MjYwODA0MDk0MTA1WhcNMjYwODA2MDk0MTM1WjBZMQswCQYDVQQGEwJVUzEbMBkGA1UEChMSTlZJRElBIENvcnBvcmF0aW9uMS0wKwYD"
    "VQQDEyROVklESUEgQXR0ZXN0YXRpb24gU2VydmljZSBHUFUgR0gxMDAwdjAQBgcqhkjOPQIBBgUrgQQAIgNiAATcQXVxRD5tAitMkzp3"
    "rRaJpbI1AZjFCkSUiux5RuVNw4l65drL8ndB7LgRmSGJwz/jWnANm/n8mmEJfbHK93p3Fio7Ns2/QzJg8Wi4jCH6p/CcK0tPRZLZR5Cf"
    "39+YuSijcTBvMA4GA1UdDwEB/wQEAwIDqDAdBgNVHSUEFjAUBggrBgEFBQcDAQYIKwYBBQUHAwIwHQYDVR0OBBYEFOOXAk4BYAAzw90O"
    "ziYVC4Esr+hRMB8GA1UdIwQYMBaAFPqoANOPTac6XGds31E7pGryjK7dMA0GCSqGSIb3DQEBCwUAA4IBAQCqUVrOTzu0Ddd8wcT3gyS2"
    "9QXU2KwYzX9DnipIc1oi9JmPz4TKDE8bs9lNcEwmcnKmdVqnnDQotBjyr6EhDuPAxcL3MutIvYjg5A8HUOrUc3ivn44zP1/gIX6glvM+"
    "19Crou3Pl0gcrwbv7KGHQjRDaAonEjR/jWH0NzjLJMhoSlH9AhUQ6iTWCQqr7IXSvenfQ1JlEXfI019GDXghOH7KI/pvTCLCIYFt6Xha"
    "dOphiiLNMlGBPpUeN45XPMMIaKS07x4JJZF6AWLpq/8tgm4uXehrH3eoV5zumx3MG2GLw/UWHLEUlmI1k1cdAzARv0WCw8A1ejFyEbdU"
    "xyPpCKBM"
)
# NVIDIA Attestation Service GPU Intermediate 004: RSA 2048, signed by "NVIDIA Attestation Service CA 001" with ECDSA.
INTERMEDIATE = base64.b64decode(
    "MIIDjjCCAxWgAwIBAgIUX+djej7sXIvcZ8Ym8KJF8WsI3UMwCgYIKoZIzj0EAwMwVjELMAkGA1UEBhMCVVMxGzAZBgNVBAoMEk5WSURJ"
    "QSBDb3Jwb3JhdGlvbjEqMCgGA1UEAwwhTlZJRElBIEF0dGVzdGF0aW9uIFNlcnZpY2UgQ0EgMDAxMB4XDTI1MTIwODAwMDAwMFoXDTI5"
    "MTIwODAwMDAwMFowZDE4MDYGA1UEAwwvTlZJRElBIEF0dGVzdGF0aW9uIFNlcnZpY2UgR1BVIEludGVybWVkaWF0ZSAwMDQxGzAZBgNV"
    "BAoMEk5WSURJQSBDb3Jwb3JhdGlvbjELMAkGA1UEBhMCVVMwggEiMA0GCSqGSIb3DQEBAQUAA4IBDwAwggEKAoIBAQDCmOUQzlKU+iKz"
    "dXwJZBpjIwkO2ZhrbeevIScmqL6QdkZMdj9FKxFResOdPoJA0IxMDwYFMy87MIJYV/hRAo9ut6q0OZiZwPFSfxqN+ZcDyFMkYEnHvMgF"
    "aSuYxMiNWm9WcOcOih8FdX0s8qmkHq+NM48l8R7VNhX0HB2IZ2mxp4nH/dxpFcbpRavaECEvLqbUSvSNAmg+xNCCVsihKPF/rksGZK1w"
    "ky6E8HcydYxydK2MP95dc5Ovqq80COxCPgsjgUN/JT9Gr9iNXaof9W2ZKqasCjADRfITS7N9SQsp7Jv6UudT5tFbFKp7gCKwpjjUgQEU"
    "o3JkWTHiBuRrBZWFAgMBAAGjgecwgeQwDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8EBAMCAQYwSAYDVR0fBEEwPzA9oDugOYY3aHR0"
    "cDovL2NybC5uZGlzLm52aWRpYS5jb20vY3JsLW5yYXMvbnYtbnJhcy1sMS1yb290LmNybDA3BggrBgEFBQcBAQQrMCkwJwYIKwYBBQUH"
    "MAGGG2h0dHA6Ly9vY3NwLm5kaXMubnZpZGlhLmNvbTAdBgNVHQ4EFgQU+qgA049NpzpcZ2zfUTukavKMrt0wHwYDVR0jBBgwFoAUvgpv"
    "7XnCSKqKNwsm9oU3MWxyBL8wCgYIKoZIzj0EAwMDZwAwZAIwEaF8qbwlAoAWNm7WNnqdECSs9uQxqQkl1eQLKJIVEC+XsHTL2SGBrbUG"
    "lLX89zf/AjAL0Xav/uW7dMhqSqqE86RiojGbZR5jRNtWAJIw/YH9yBAJ5ktCAqSSfrJ4qjzf48U="
)

_STARTS = timegm((2026, 8, 4, 9, 41, 5))
_ENDS = timegm((2026, 8, 6, 9, 41, 35))


def _refusal(chain: tuple[bytes, ...], roots: tuple[bytes, ...], now: int) -> str:
    with pytest.raises(MeshError) as refusal:
        verify_key_chain(chain, roots, now)
    return refusal.value.reason


def test_intermediate_is_the_one_that_others_pin() -> None:
    digest = "2df8907cf4d6c277b855d407ec178a649930a8e73f7294e8fce66e6ee27c5175"
    assert hashlib.sha256(INTERMEDIATE).hexdigest() == digest


@pytest.mark.parametrize("chain", [(_LEAF, INTERMEDIATE), (_LEAF,)])
def test_real_signing_key_is_certified_under_the_pinned_intermediate(chain: tuple[bytes, ...]) -> None:
    for now in (_STARTS, _ENDS):
        signing = verify_key_chain(chain, (INTERMEDIATE,), now)
        assert isinstance(signing.key.curve, ec.SECP384R1)
        assert signing.valid_until == _ENDS


def test_real_signing_key_ends_after_two_days() -> None:
    for now in (_STARTS - 1, _ENDS + 1):
        assert _refusal((_LEAF, INTERMEDIATE), (INTERMEDIATE,), now) == "GPU_TOKEN_KEY_CHAIN_NOT_CURRENT"


def test_real_signing_key_is_refused_where_policy_pins_no_authority_above_it() -> None:
    assert _refusal((_LEAF, INTERMEDIATE), (), _STARTS) == "GPU_TOKEN_KEY_NOT_TRUSTED"


def test_tampered_certificate_is_refused() -> None:
    tampered = _LEAF[:-1] + bytes([_LEAF[-1] ^ 1])
    assert _refusal((tampered, INTERMEDIATE), (INTERMEDIATE,), _STARTS) == "GPU_TOKEN_KEY_CHAIN_INVALID"
