"""What every test relies on: TLS 1.3 only, as in the services, before anything loads gRPC; and who shares a mesh.

And tests that belong to one of the ledger's faults are found by its number: `pytest -k fault_07`.
"""

from libs.rpc.hardening import ssl_hardening

ssl_hardening()

import pytest  # noqa: E402
from xdist.remote import Producer  # noqa: E402
from xdist.scheduler import LoadFileScheduling  # noqa: E402

from tests.faults.ledger.belonging import BELONGING, keyword_of  # noqa: E402

_ONE_MESH_ALONE = frozenset({"tests/mesh/aci"})
"""Folders of which every test uses one mesh."""
_ON_ONE_MESH = frozenset(
    {
        *(f"tests/faults/test_{name}.py" for name in ("kill", "ledger_away", "policy", "tenants")),
        *(
            f"tests/mesh/test_{name}.py"
            for name in (
                "channels",
                "client_api",
                "commands",
                "entries",
                "failing_engines",
                "full_disk",
                "hostile_http",
                "malformed",
                "sdks",
                "secrets",
                "shares",
                "tenants",
                "two_routers",
                "weights",
            )
        ),
    }
)
"""Files whose tests all use their folder's own mesh. Any other file is right too, and only slower."""


class Scheduling(LoadFileScheduling):
    """A worker takes a whole file at a time, and all files of a folder that are on one mesh: it is started once."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = file.rpartition("/")[0]
        return folder if file in _ON_ONE_MESH or folder in _ONE_MESH_ALONE else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return Scheduling(config, log)


def pytest_itemcollected(item: pytest.Item) -> None:
    name = item.nodeid.partition("[")[0]
    item.extra_keyword_matches.update(keyword_of(number) for number, names in BELONGING.items() if name in names)
