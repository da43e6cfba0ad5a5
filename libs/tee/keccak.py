"""Responsible for Keccak-256, the hash of the second form of a dstack configuration id.

This is the original Keccak submission (domain byte 0x01), not NIST SHA3-256 (0x06), which is why `hashlib` does not
have it. FIPS 202 section 3 describes the permutation. Not constant-time; nothing hashed here is secret.
"""

from __future__ import annotations

_RATE = 136
_LANE = (1 << 64) - 1

_ROTATIONS = (
    (0, 36, 3, 41, 18),
    (1, 44, 10, 45, 2),
    (62, 6, 43, 15, 61),
    (28, 55, 25, 21, 56),
    (27, 20, 39, 8, 14),
)


def keccak256(data: bytes) -> bytes:
    """Return the 32-byte digest."""
    return sponge(data, 0x01)


def sponge(data: bytes, domain: int) -> bytes:
    """The 256-bit sponge with this domain byte; with 0x06 it is SHA3-256."""
    lanes = [[0] * 5 for _ in range(5)]
    padded = bytearray(data) + bytearray(_RATE - len(data) % _RATE)
    padded[len(data)] ^= domain
    padded[-1] ^= 0x80
    for start in range(0, len(padded), _RATE):
        for index in range(_RATE // 8):
            offset = start + 8 * index
            lanes[index % 5][index // 5] ^= int.from_bytes(padded[offset : offset + 8], "little")
        lanes = _permute(lanes)
    return b"".join(lanes[x][0].to_bytes(8, "little") for x in range(4))


def _permute(a: list[list[int]]) -> list[list[int]]:
    for constant in _ROUND_CONSTANTS:
        # theta
        columns = [a[x][0] ^ a[x][1] ^ a[x][2] ^ a[x][3] ^ a[x][4] for x in range(5)]
        parity = [columns[(x - 1) % 5] ^ _rotate(columns[(x + 1) % 5], 1) for x in range(5)]
        a = [[lane ^ parity[x] for lane in a[x]] for x in range(5)]
        # rho and pi
        b = [[0] * 5 for _ in range(5)]
        for x in range(5):
            for y in range(5):
                b[y][(2 * x + 3 * y) % 5] = _rotate(a[x][y], _ROTATIONS[x][y])
        # chi
        a = [[b[x][y] ^ (~b[(x + 1) % 5][y] & _LANE & b[(x + 2) % 5][y]) for y in range(5)] for x in range(5)]
        # iota
        a[0][0] ^= constant
    return a


def _rotate(lane: int, by: int) -> int:
    return ((lane << by) | (lane >> (64 - by))) & _LANE


def _round_constants() -> tuple[int, ...]:
    """The 24 constants from the linear feedback register of FIPS 202 algorithm 5."""
    constants = []
    register = 1
    for _ in range(24):
        constant = 0
        for bit in range(7):
            if register & 1:
                constant |= 1 << ((1 << bit) - 1)
            register <<= 1
            if register & 0x100:
                register ^= 0x171
        constants.append(constant)
    return tuple(constants)


_ROUND_CONSTANTS = _round_constants()
