"""Published vectors of the formats that the log takes from others.

The signed note is that of the reference implementation's own test (golang.org/x/mod/sumdb/note, note_test.go); the
trees and paths are those of the certificate-transparency project's reference tests for RFC 6962. The cosigned
checkpoints are of public staging logs of Certificate Transparency, cosigned by witnesses that run for anyone.
"""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.transparency import checkpoint, cosignature, merkle, note
from libs.transparency.cosignature import CosignatureInvalid, CosignerKey
from libs.transparency.merkle import CompactRange
from libs.transparency.note import NoteMalformed, NoteSignatureInvalid, VerifierKey
from libs.transparency.tree import Tree

VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
LINE = (
    "\N{EM DASH} PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
SKEY = "AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
CONSISTENCY_6_8 = [
    "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
]
CONSISTENCY_2_5 = [
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
]

COSIGNED = """arche2025h1.staging.ct.transparency.dev
1432088532
U7WM79jrzyhGZ5/GUBTpM7NzwdyfFx61t3RovgcC4Ro=

\N{EM DASH} arche2025h1.staging.ct.transparency.dev \
ui8GwCF1+kWqZrxGdhj4aX3gcw7XUlXQQabg/27lefwhUkzbC3NygNI75MdhL1bfTW9g8Ei59RA23oHP7Ry1k3ZFWwQ=
\N{EM DASH} witness1.smartit.nu/witness1 \
pIyCDwAAAABqEiEghIp82KWebrw7/oHQwlTAm3g2RKS4+eebl8eO0WH+/iEcxZ75W3u5hNI7TOQtmJbqmNWVuE0tgh0XwzdZsDsUAQ==
\N{EM DASH} remora.n621.de \
2net5wAAAABqEiEgPlfF3V06o0Y+fHM+J5J9s27wgxxcOVSpZ/2g/KSiXCg9DEZI+aVCIobWX9sXTynk5XeU/zZ0WBxtqB0DrAWfBw==
\N{EM DASH} witness.stagemole.eu \
Z/euoAAAAABqEiEgw0i+7g2ENfDAWHmtRzCfKTHSDwYDJA2NmKeGi9Y8FtEyOUvVr+AJmIY/2TUFucgKi7lI7cUiOvKFYe/TmN9DAg==
""".encode()
PUBLIC_WITNESSES = [
    "remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2",
    "witness1.smartit.nu/witness1+a48c820f+BPSFWg9G6KPiO7QPryYO5Xq4oYJJ+kAvLKLSimDhoxMO",
    "witness.stagemole.eu+67f7aea0+BEqSG3yu9YrmcM3BHvQYTxwFj3uSWakQepafafpUqklv",
]

VECTORS = Path(__file__).parent / "vectors"
NAVIGLI = "witness.navigli.sunlight.geomys.org+a3e00fe2+BNy/co4C1Hn1p+INwJrfUlgz7W55dSZReusH/GhUhJ/G"


def test_note_of_the_reference_implementation_verifies_and_is_reproduced() -> None:
    key = VerifierKey.parse(VKEY)
    signed = f"{TEXT}\n{LINE}".encode()
    assert key.text() == VKEY
    assert note.verify(signed, key) == TEXT
    private = Ed25519PrivateKey.from_private_bytes(base64.b64decode(SKEY)[1:])
    assert note.sign(TEXT, "PeterNeumann", private) == signed
    with pytest.raises(NoteSignatureInvalid):
        note.verify(signed.replace(b"cryptography", b"cryptographY"), key)


def test_every_mangled_key_of_the_reference_test_is_refused() -> None:
    mangled = [VKEY[low:high] for low in range(len(VKEY)) for high in range(low + 1, len(VKEY) + 1)]
    mangled.remove(VKEY)
    mangled += [VKEY[:at] + chr(ord(VKEY[at]) + 1) + VKEY[at + 1 :] for at in range(len(VKEY))]
    mangled.append("PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==")
    mangled.append("PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    for text in mangled:
        with pytest.raises(NoteMalformed):
            VerifierKey.parse(text)


def test_roots_and_proofs_of_the_certificate_transparency_project() -> None:
    compact, tree = CompactRange(), Tree()
    for leaf, root in zip(LEAVES, ROOTS, strict=True):
        hashed = merkle.leaf_hash(bytes.fromhex(leaf))
        compact.append(hashed)
        tree.append(hashed)
        assert compact.root().hex() == tree.root().hex() == root
    for (first, second), path in {(6, 8): CONSISTENCY_6_8, (2, 5): CONSISTENCY_2_5}.items():
        assert [step.hex() for step in merkle.consistency_path(tree, first, second)] == path


def test_cosignatures_of_public_witnesses_verify() -> None:
    keys = [CosignerKey.parse(text) for text in PUBLIC_WITNESSES]
    assert [key.text() for key in keys] == PUBLIC_WITNESSES
    assert checkpoint.parse(COSIGNED).size == 1_432_088_532
    assert len(cosignature.verify_quorum(COSIGNED, keys, 3)) == 3
    for key in keys:
        assert cosignature.verify_cosignature(COSIGNED, key) == 0x6A122120
        with pytest.raises(CosignatureInvalid):
            cosignature.verify_cosignature(COSIGNED.replace(b"\n1432088532\n", b"\n1432088533\n"), key)


def test_both_cosignatures_of_one_public_witness_verify() -> None:
    """Ed25519 and ML-DSA-44 over one checkpoint. The file holds the key of the second, then the checkpoint."""
    text, _, cosigned = VECTORS.joinpath("cosigned-ml-dsa-44.txt").read_bytes().partition(b"\n")
    for key in (CosignerKey.parse(text.decode()), CosignerKey.parse(NAVIGLI)):
        assert cosignature.verify_cosignature(cosigned, key) == 0x6A6FB0F3
        with pytest.raises(CosignatureInvalid):
            cosignature.verify_cosignature(cosigned.replace(b"\n185550722\n", b"\n185550723\n"), key)
