from __future__ import annotations

from typing import Any

import pytest

from libs.tee.snp.certificates import CERTIFICATE_BYTES
from libs.tee.snp.endorsement import CRL_BYTES, EndorsementMalformed, SnpEndorsement
from tests.fakes.snp_platform import chip


def test_endorsement_travels_as_it_is() -> None:
    members = chip().members()
    endorsement = SnpEndorsement.parse(members)
    assert endorsement.to_json() == members
    assert SnpEndorsement.decode(endorsement.encode()) == endorsement
    assert endorsement.vcek.serial == 0


def test_endorsement_without_a_crl_is_read() -> None:
    members = chip().members() | {"crl": ""}
    assert SnpEndorsement.parse(members).crl is None
    assert SnpEndorsement.parse(members).to_json() == members


def test_chain_may_have_the_line_ends_of_another_system() -> None:
    members = chip().members()
    other = members | {"chain": members["chain"].replace("\n", "\r\n")}
    assert SnpEndorsement.parse(other) == SnpEndorsement.parse(members)


def _altered() -> list[tuple[str, Any]]:
    members = chip().members()
    ask, ark = (
        part + "-----END CERTIFICATE-----\n" for part in members["chain"].split("-----END CERTIFICATE-----\n")[:2]
    )
    vcek, crl = members["vcek"], members["crl"]
    # Version 2 of a CRL is written 1.
    odd_crl = crl.replace("020101", "020107", 1)
    return [
        ("a list", [members]),
        ("no chain", {"vcek": vcek, "crl": crl}),
        ("a fourth member", members | {"vlek": ""}),
        ("no VCEK", members | {"vcek": ""}),
        ("VCEK in capitals", members | {"vcek": vcek.upper()}),
        ("VCEK cut short", members | {"vcek": vcek[:-2]}),
        ("VCEK continued", members | {"vcek": vcek + "00"}),
        ("VCEK of another version", members | {"vcek": vcek.replace("a003020102", "a003020107", 1)}),
        ("VCEK without a serial number", members | {"vcek": vcek.replace("a003020102020100", "a003020102020000", 1)}),
        ("VCEK with a longer zero", members | {"vcek": "3005" + "3003" + "020100"}),
        ("VCEK of endless length", members | {"vcek": "3084ffffffff" + vcek}),
        ("one certificate", members | {"chain": ark}),
        ("three certificates", members | {"chain": ask + ark + ark}),
        ("words in the chain", members | {"chain": ask + "and\n" + ark}),
        ("words before the chain", members | {"chain": "the\n" + ask + ark}),
        ("no base64", members | {"chain": ask.replace("M", "=", 1) + ark}),
        ("number for a chain", members | {"chain": 1}),
        ("CRL cut short", members | {"crl": crl[:-2]}),
        ("CRL of another version", members | {"crl": odd_crl}),
        ("null for a CRL", members | {"crl": None}),
    ]


@pytest.mark.parametrize("value", [row[1] for row in _altered()], ids=[row[0] for row in _altered()])
def test_other_forms_are_refused(value: Any) -> None:
    with pytest.raises(EndorsementMalformed):
        SnpEndorsement.parse(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vcek", "30" * (CERTIFICATE_BYTES + 1)),
        ("crl", "30" * (CRL_BYTES + 1)),
        ("chain", chip().members()["chain"] + "\n" * 4 * CERTIFICATE_BYTES),
    ],
)
def test_no_part_is_read_beyond_its_bound(name: str, value: str) -> None:
    with pytest.raises(EndorsementMalformed, match="more than"):
        SnpEndorsement.parse(chip().members() | {name: value})
