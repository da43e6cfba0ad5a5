from __future__ import annotations

from pathlib import Path

import pytest

from services.devtee.__main__ import InstancesAmbiguous, check
from services.devtee.config import InstanceSettings, ListenAddressRefused, Settings


def settings(listen: str, *instances: InstanceSettings) -> Settings:
    return Settings(Path("/state"), listen, instances)


@pytest.mark.parametrize(
    ("listen", "address"),
    [("127.0.0.1:8081", ("127.0.0.1", 8081)), ("[::1]:0", ("::1", 0))],
)
def test_a_loopback_address_is_taken(listen: str, address: tuple[str, int]) -> None:
    assert settings(listen).pccs_address() == address


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:80", "10.0.0.1:80", "localhost:80", "127.0.0.1", "127.0.0.1:x", "[::]:1", "127.0.0.1:65536"]
)
def test_any_other_address_is_refused(listen: str) -> None:
    with pytest.raises(ListenAddressRefused):
        settings(listen).pccs_address()


def test_instances_need_names_and_sockets_of_their_own() -> None:
    one = InstanceSettings("one", Path("/one.sock"), Path("/one.json"))
    two = InstanceSettings("two", Path("/two.sock"), Path("/two.json"))
    check(settings("127.0.0.1:0", one, two))
    for wrong in (
        (),
        (one, InstanceSettings("one", Path("/two.sock"), Path("/two.json"))),
        (one, InstanceSettings("two", Path("/one.sock"), Path("/two.json"))),
    ):
        with pytest.raises(InstancesAmbiguous):
            check(settings("127.0.0.1:0", *wrong))
