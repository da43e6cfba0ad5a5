"""What is remembered of verified links: that this certificate was signed by that one, and nothing about any other."""

from __future__ import annotations

from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from libs.tee.nvidia.chain import UNREADABLE, verify_issued
from tests.unit.libs.tee.nvidia.gpu_bench import GpuBench


def _link(bench: GpuBench) -> tuple[x509.Certificate, x509.Certificate]:
    leaf, issuer, *_ = x509.load_pem_x509_certificates(bench.gpus[0].chain.encode())
    return leaf, issuer


def test_link_that_held_holds_without_being_verified_again(gpu_bench: GpuBench) -> None:
    verify_issued(*_link(gpu_bench))
    before = verify_issued.cache_info()
    verify_issued(*_link(gpu_bench))
    assert (verify_issued.cache_info().hits, verify_issued.cache_info().misses) == (before.hits + 1, before.misses)


def test_link_that_failed_fails_again(gpu_bench: GpuBench) -> None:
    leaf, _ = _link(gpu_bench)
    for _ in range(2):
        with pytest.raises((InvalidSignature, ValueError)):
            verify_issued(leaf, leaf)


def test_certificate_changed_in_one_bit_is_another(gpu_bench: GpuBench) -> None:
    leaf, issuer = _link(gpu_bench)
    verify_issued(leaf, issuer)
    before = verify_issued.cache_info().hits
    data = leaf.public_bytes(Encoding.DER)
    readable = 0
    for at in range(len(data)):
        try:
            changed = x509.load_der_x509_certificate(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        except UNREADABLE:
            continue
        readable += 1
        # One change is left for the signature to hold: how many bits of its last byte are none, where those are zero.
        with suppress(InvalidSignature, *UNREADABLE):
            verify_issued(changed, issuer)
    assert readable > 400
    assert verify_issued.cache_info().hits == before
