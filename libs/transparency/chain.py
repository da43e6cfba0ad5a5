"""The names and hashes that order a log: log id, issuer, entry id, hash chain and frame hash.

The chain adds no strength to the signed root. It buys streaming verification, and resume tokens that detect rollback.
"""

from __future__ import annotations

import struct
from hashlib import sha256

BOOT_SIZE = 16
_CHAIN_PREFIX = b"\x02"
_HASH = struct.Struct(">32s")
_BATCH_PREFIX = b"\x03"


def domain(name: str) -> bytes:
    """Return the prefix that keeps one use of a key or hash apart from every other: `teemesh/<name>/v1` and a zero."""
    return b"teemesh/" + name.encode("ascii") + b"/v1\x00"


_ENTRY = domain("entry")


def log_id(origin: str) -> bytes:
    """Return the 32 bytes that stand for a log's origin in binary formats."""
    return sha256(origin.encode("utf-8")).digest()


def issuer_id(spki_der: bytes, boot: bytes) -> bytes:
    """Return the id of one start of one process: its Ed25519 log key and a number drawn at that start.

    A restart is a new issuer, so no sequence number is ever used twice.
    """
    if len(boot) != BOOT_SIZE:
        raise ValueError(f"the boot number has {BOOT_SIZE} bytes")
    return sha256(domain("issuer") + spki_der + boot).digest()


def entry_id(issuer: bytes, issuer_seq: int) -> bytes:
    """Return the id of an entry, which its issuer knows before the log does."""
    return sha256(_ENTRY + issuer + issuer_seq.to_bytes(8, "big")).digest()


def entry_ids(issuer: bytes, low: int, high: int) -> list[bytes]:
    """Return the ids of an issuer's entries from number `low` to `high`."""
    prefix = _ENTRY + issuer
    return [sha256(prefix + number.to_bytes(8, "big")).digest() for number in range(low, high + 1)]


def chain_start(origin: str) -> bytes:
    """Return c_0, the chain head of the empty log."""
    return sha256(domain("chain") + origin.encode("utf-8")).digest()


def chain_next(head: bytes, index: int, leaf_hash: bytes) -> bytes:
    """Return c_(index+1), given c_index and the hash of leaf number `index`."""
    return sha256(_CHAIN_PREFIX + head + index.to_bytes(8, "big") + leaf_hash).digest()


def chain_over(head: bytes, first: int, leaf_hashes: bytes) -> bytes:
    """Return the chain head after some leaves, given the one before leaf number `first`; hashes lie end to end."""
    for index, (leaf_hash,) in enumerate(_HASH.iter_unpack(leaf_hashes), first):
        head = sha256(_CHAIN_PREFIX + head + index.to_bytes(8, "big") + leaf_hash).digest()
    return head


def batch_hash(header: bytes, rows: bytes, chain_after: bytes, root_after: bytes) -> bytes:
    """Return the hash of a frame; the next frame's header names it, so that no frame can be left out."""
    return sha256(b"".join((_BATCH_PREFIX, header, rows, chain_after, root_after))).digest()
