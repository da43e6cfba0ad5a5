"""Every parser of foreign evidence refuses hostile bytes by its own errors, and within its memory."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import cache

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from libs import jcs
from libs.errors import MeshError
from tests.fuzz import seeds
from tests.fuzz.mutation import Chance, mutate
from tests.fuzz.seeds import world
from tests.fuzz.targets import TARGETS, BoundExceeded, Target

# The X.509 library warns of forms that it will refuse one day. In production that is a line in a log.
pytestmark = [
    pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attribute's length must be"),
]

_SHORT = settings(max_examples=30, deadline=None, derandomize=True)
_LONGER = settings(max_examples=80, deadline=None, derandomize=True)


@cache
def _warm(name: str) -> tuple[Target, list[bytes]]:
    """The target, with everything imported and compiled that its parser uses."""
    target = TARGETS[name]
    genuine = target.seeds()
    for seed in genuine:
        target.survive(seed)
    return target, genuine


@pytest.mark.parametrize("name", TARGETS)
def test_genuine_documents_are_read(name: str) -> None:
    target, genuine = _warm(name)
    target.run(genuine[0])


@pytest.mark.parametrize("name", TARGETS)
@_SHORT
@given(data=st.binary(max_size=300))
def test_any_bytes(name: str, data: bytes) -> None:
    target, _ = _warm(name)
    target.survive_measured(data)


@pytest.mark.parametrize("name", TARGETS)
@_LONGER
@given(data=st.data())
def test_genuine_document_changed_inside(name: str, data: st.DataObject) -> None:
    target, genuine = _warm(name)
    hostile = data.draw(st.sampled_from(genuine))
    for seed in data.draw(st.lists(st.integers(0, 2**32), min_size=1, max_size=3)):
        hostile = mutate(hostile, Chance.of(seed))
    target.survive_measured(hostile[: target.max_bytes])


_SIZE = 6_000


def _list_of(unit: str) -> str:
    # The escape makes the reader look for half surrogate pairs, for which it writes the text once more.
    return f'["\\u0041",{",".join([unit] * (_SIZE // (len(unit) + 1)))}]'


@pytest.mark.parametrize(
    "text",
    [
        _list_of("{}"),
        _list_of("[0]"),
        _list_of('{"":{"":0}}'),
        _list_of("[" * 60 + "]" * 60),
        _list_of('{"":' * 60 + "0" + "}" * 60),
        "[" * _SIZE,
        f'["\U0001f600{"a" * _SIZE}"]',
    ],
    ids=["objects", "lists", "nested objects", "deep lists", "deep objects", "too deep", "wide characters"],
)
def test_costliest_documents_stay_within_the_bound(text: str) -> None:
    """What a hostile author can make of the fewest bytes: containers of containers, and one character for all."""
    for name in ("json", "event-log", "evidence", "challenge", "gpu-evidence", "gpu-keys", "gpu-collected"):
        target, _ = _warm(name)
        for hostile in (text, f'{{"keys":{text}}}', f'{{"evidences":{text}}}', f'{{"claims":{text}}}'):
            target.survive_measured(hostile.encode())


def _lone_surrogate(more: str = "") -> bytes:
    document = jcs.loads_object(seeds.documents()[0])
    return json.dumps(document | {"app_compose": "\ud800" + more}).encode()


def _challenge_by_unknown_version() -> bytes:
    challenge = jcs.loads_object(seeds.challenges()[0])
    # [0] EXPLICIT INTEGER 2, version 3: one more is none that the library knows.
    certificate = challenge["certificate"].replace("a003020102", "a003020103")
    return jcs.dumps(challenge | {"certificate": certificate})


def _quote_with_crl(change: Callable[[str], str]) -> bytes:
    document = jcs.loads_object(seeds.quotes_with_collateral()[0])
    document["collateral"]["root_ca_crl"] = change(document["collateral"]["root_ca_crl"])
    return jcs.dumps(document)


# Tag and first byte of a text: a byte that UTF-8 never has, and a bit string.
_NO_UTF8, _BIT_STRING = b"\x0c\xff", b"\x03\0"


def _crl_of_unreadable_issuer(form: bytes) -> bytes:
    return _quote_with_crl(lambda crl: _spoilt(crl, world().bench.machine.vendor_root, form))


def _key_chain_of_unreadable_issuer(form: bytes) -> bytes:
    *below, last = jcs.loads(seeds.gpu_key_chains()[0])
    return jcs.dumps([*below, _spoilt(last, world().gpu.nras.authority.root.der, form)])


def _spoilt(issued: str, issuer: bytes, form: bytes) -> str:
    """Return the hex DER with the issuer's first name spoilt. The library reads a name only when it is asked for it."""
    name, *_ = x509.load_der_x509_certificate(issuer).subject
    value = name.value if isinstance(name.value, bytes) else name.value.encode()
    genuine = bytes((0x0C, len(value))) + value
    assert genuine.hex() in issued
    return issued.replace(genuine.hex(), (form[:1] + genuine[1:2] + form[1:] + value[1:]).hex())


def _unknown_crl_version(crl: str) -> str:
    # The list's own SEQUENCE begins with INTEGER 1, version 2.
    return crl.replace("020101", "020107", 1)


def _certificate_with_a_bit_string_for_a_name() -> bytes:
    return world().subject.certificate([seeds.directory_name(b"\x03\x03\x00ab")])


def _result_signed_by_it() -> bytes:
    header, payload, signature = seeds.attestation_results()[0].split(b".")
    members = json.loads(base64.urlsafe_b64decode(header + b"=="))
    members["x5c"] = [base64.b64encode(_certificate_with_a_bit_string_for_a_name()).decode()]
    header = base64.urlsafe_b64encode(json.dumps(members).encode()).rstrip(b"=")
    return b".".join((header, payload, signature))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("evidence", _lone_surrogate),
        ("evidence", lambda: _lone_surrogate("\U0001f600")),
        ("challenge", _challenge_by_unknown_version),
        ("quote-verification", lambda: _crl_of_unreadable_issuer(_NO_UTF8)),
        ("quote-verification", lambda: _crl_of_unreadable_issuer(_BIT_STRING)),
        ("quote-verification", lambda: _quote_with_crl(_unknown_crl_version)),
        ("gpu-key-chain", lambda: _key_chain_of_unreadable_issuer(_NO_UTF8)),
        ("gpu-key-chain", lambda: _key_chain_of_unreadable_issuer(_BIT_STRING)),
        ("certificate", _certificate_with_a_bit_string_for_a_name),
        ("attestation-result", _result_signed_by_it),
    ],
    ids=[
        "half a surrogate pair",
        "half a surrogate pair beside a wide character",
        "certificate version",
        "CRL issuer that is no text",
        "CRL issuer that is a bit string",
        "CRL version",
        "token key's issuer that is no text",
        "token key's issuer that is a bit string",
        "bit string for a name",
        "bit string for a signer's name",
    ],
)
def test_what_fuzzing_once_found_is_refused(name: str, make: Callable[[], bytes]) -> None:
    with pytest.raises(MeshError):
        TARGETS[name].run(make())


def test_a_parser_that_raises_anything_else_is_found() -> None:
    with pytest.raises(KeyError):
        Target({b"a": None}.__getitem__, list, 1, 0).survive(b"x")


def test_a_parser_that_takes_too_much_is_found() -> None:
    target = Target(lambda data: bytes(100_000), list, 16, 50_000)
    with pytest.raises(BoundExceeded):
        target.survive_measured(b"x" * 1000)
    assert target.survive_measured(b"x" * 4000) > 100_000
