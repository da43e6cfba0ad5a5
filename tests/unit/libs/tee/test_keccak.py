from __future__ import annotations

from hashlib import sha3_256

import pytest

from libs.tee.keccak import keccak256, sponge


@pytest.mark.parametrize(
    ("message", "digest"),
    [
        (b"", "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"),
        (b"abc", "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"),
        (
            b"The quick brown fox jumps over the lazy dog",
            "4d741b6f1eb29cb2a9b9911c82f56fa8d73b04959d3d9d222895df6c0b28aa15",
        ),
    ],
)
def test_published_digests_match(message: bytes, digest: str) -> None:
    assert keccak256(message).hex() == digest


def test_the_sponge_is_sha3s_at_every_length_around_its_blocks() -> None:
    for length in range(300):
        message = bytes(index * 7 & 0xFF for index in range(length))
        assert sponge(message, 0x06) == sha3_256(message).digest()
