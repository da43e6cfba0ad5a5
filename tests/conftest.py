"""What every test relies on: TLS 1.3 only, as in the services, before anything loads gRPC.

And tests that belong to one of the ledger's faults are found by its number: `pytest -k fault_07`.
"""

from __future__ import annotations

import pytest

from libs.rpc.hardening import ssl_hardening
from tests.faults.ledger.belonging import BELONGING, keyword_of

ssl_hardening()


def pytest_itemcollected(item: pytest.Item) -> None:
    name = item.nodeid.partition("[")[0]
    item.extra_keyword_matches.update(keyword_of(number) for number, names in BELONGING.items() if name in names)
