"""Where opened weights may lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.node.place import WeightsWouldRest, require_unreadable_at_rest, swaps

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


def test_memory_is_a_place_and_a_disk_in_the_clear_is_none() -> None:
    require_unreadable_at_rest(Path("/dev/shm"))
    for disk in (Path(__file__).parent, Path("/proc")):
        with pytest.raises(WeightsWouldRest) as refused:
            require_unreadable_at_rest(disk)
        assert refused.value.reason == "WEIGHTS_WOULD_REST"


@pytest.mark.parametrize(
    ("listed", "named"),
    [
        ("", []),
        (HEAD, []),
        (HEAD + "/dev/zram0                 partition\t8388604\t0\t100\n", []),
        (
            HEAD + "/dev/vda2                 partition\t8388604\t0\t-2\n/swapfile file\t1\t0\t-3\n",
            ["/dev/vda2", "/swapfile"],
        ),
    ],
)
def test_memory_that_goes_to_a_disk_is_named(listed: str, named: list[str]) -> None:
    assert swaps(listed) == named
