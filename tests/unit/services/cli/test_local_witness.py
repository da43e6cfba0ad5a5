"""The witness of a local mesh, and what a ledger may be told of witnesses."""

from __future__ import annotations

import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.config import ConfigInvalid, load
from libs.transparency.cosignature import cosigner_key
from services.cli.local.config import Addresses, write_service_configs
from services.cli.local.policy import LocalOperators
from services.cli.local.witness import NAME, ledgers_witness, write_witness_config
from services.cli.mesh.layout import Layout
from services.cli.mesh.ports import NAMES
from services.cli.mesh.roster import WITNESS
from services.ledger.checkpoints.witnesses import open_witnesses
from services.ledger.config import Config as LedgerConfig
from services.witness.book import Book
from services.witness.config import Config as WitnessConfig
from services.witness.cosigning import Cosigning
from services.witness.keys import load_keys
from services.witness.listener import Submissions, serving_witness


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "state")
    layout.prepare()
    write_service_configs(layout, addresses(), layout.policy(3))
    return layout


def operators_of(count: int) -> LocalOperators:
    return LocalOperators(tuple(Ed25519PrivateKey.generate() for _ in range(count)), Ed25519PrivateKey.generate())


def addresses(witness: int = 19_999) -> Addresses:
    return Addresses({**{name: 20_000 + place for place, name in enumerate(NAMES)}, WITNESS: witness}, router_port=8443)


def test_the_ledger_is_told_of_the_witness_and_the_witness_of_operators_and_policy(layout: Layout) -> None:
    operators = operators_of(2)
    write_witness_config(layout, addresses(), operators, layout.policy(3))
    witness = load(layout.config(WITNESS), WitnessConfig)
    (log,) = witness.logs
    assert log.attested is not None
    assert (log.origin, log.verifier_keys) == ("mesh.local/ledger/1", ())
    assert log.attested.operator_keys == tuple(key.hex() for key in operators.public_keys)
    assert (log.attested.operator_threshold, log.attested.seed_policy) == (2, layout.policy(3))
    certificate = layout.witness_certificate.read_bytes()
    layout.witness_verifier_keys.write_text(f"{cosigner_key(NAME, Ed25519PrivateKey.generate()).text()}\nanother\n")
    write_service_configs(layout, addresses(), layout.policy(3), witnesses=[ledgers_witness(layout, addresses())])
    ledger = load(layout.config("ledger"), LedgerConfig)
    (told,) = ledger.witnesses
    assert (told.url, told.key.name, ledger.witness_quorum) == (f"https://{addresses().of(WITNESS)}", NAME, 1)
    assert told.ca == layout.witness_certificate
    # The next start keeps the certificate.
    write_witness_config(layout, addresses(), operators, layout.policy(3))
    assert layout.witness_certificate.read_bytes() == certificate


async def test_the_ledger_believes_its_certificate(layout: Layout) -> None:
    operators = operators_of(2)
    write_witness_config(layout, addresses(0), operators, layout.policy(3))
    config = load(layout.config(WITNESS), WitnessConfig)
    keys = load_keys(config.state_dir, config.name, may_draw=True)
    with closing(Book(config.state_dir, keys.public)) as book, ThreadPoolExecutor(1) as thread:
        async with serving_witness(config, Submissions(Cosigning(book, keys, {}, float), thread)) as port:
            write_service_configs(
                layout, addresses(), layout.policy(3), witnesses=[ledgers_witness(layout, addresses(port))]
            )
            async with open_witnesses(load(layout.config("ledger"), LedgerConfig).witnesses) as (witness,):
                assert await witness.newest("mesh.local/ledger/1") is None


@pytest.mark.parametrize(("witnesses", "quorum"), [(0, 1), (1, 0), (2, 3), (1, 2)])
def test_a_quorum_that_cannot_be_or_means_nothing_is_refused(layout: Layout, witnesses: int, quorum: int) -> None:
    keys = [cosigner_key(f"w{number}.example", Ed25519PrivateKey.generate()).text() for number in range(witnesses)]
    _add(layout, [{"url": "https://w.example", "verifier_key": key} for key in keys], quorum)
    with pytest.raises(ConfigInvalid, match="witness_quorum"):
        load(layout.config("ledger"), LedgerConfig)


def test_one_witness_does_not_count_as_two(layout: Layout) -> None:
    key = Ed25519PrivateKey.generate()
    for names in (("w.example", "w.example"), ("w1.example", "w2.example")):
        keys = [cosigner_key(name, key).text() for name in names]
        _add(layout, [{"url": "https://w.example", "verifier_key": each} for each in keys], 2)
        with pytest.raises(ConfigInvalid, match="a key of its own"):
            load(layout.config("ledger"), LedgerConfig)


def _add(layout: Layout, witnesses: list[dict[str, str]], quorum: int) -> None:
    path = layout.config("ledger")
    config = tomllib.loads(path.read_text())
    path.write_text(tomli_w.dumps({**config, "witnesses": witnesses, "witness_quorum": quorum}))
