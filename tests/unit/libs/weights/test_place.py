"""Where opened weights may lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from libs.weights.place import WeightsWouldRest, compressed, is_encrypted, require_unreadable_at_rest, swaps

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"


def test_memory_is_a_place_and_a_disk_in_the_clear_is_none() -> None:
    require_unreadable_at_rest(Path("/dev/shm"))
    for disk in (Path(__file__).parent, Path("/proc")):
        with pytest.raises(WeightsWouldRest) as refused:
            require_unreadable_at_rest(disk)
        assert refused.value.reason == "WEIGHTS_WOULD_REST"


@pytest.mark.parametrize(
    "swap",
    [
        "/dev/vda2                 partition\t8388604\t0\t-2\n",
        "/swapfile                 file\t8388604\t0\t-3\n",
        # Of which the kernel says nothing: it may write to a disk what it holds.
        "/dev/zram4094             partition\t8388604\t0\t100\n",
    ],
)
def test_memory_is_no_place_where_it_goes_to_a_disk(tmp_path: Path, swap: str) -> None:
    listed = tmp_path / "swaps"
    listed.write_text(HEAD)
    require_unreadable_at_rest(Path("/dev/shm"), listed)
    listed.write_text(HEAD + swap)
    with pytest.raises(WeightsWouldRest, match=f"memory goes to {swap.split()[0]}"):
        require_unreadable_at_rest(Path("/dev/shm"), listed)


ZRAM = "/dev/zram0                 partition\t8388604\t0\t100\n"


@pytest.mark.parametrize(
    ("listed", "backing", "named"),
    [
        ("", {}, []),
        (HEAD, {}, []),
        (HEAD + ZRAM, {"zram0": "none\n"}, []),
        # What compressed memory does not hold goes to this disk.
        (HEAD + ZRAM, {"zram0": "/dev/vdb\n"}, ["/dev/zram0"]),
        (HEAD + ZRAM, {"zram1": "none\n"}, ["/dev/zram0"]),
        (HEAD + ZRAM, {}, ["/dev/zram0"]),
        (HEAD + ZRAM.replace("zram0", "zram0/file"), {"zram0": "none\n"}, ["/dev/zram0/file"]),
        (HEAD + ZRAM.replace("zram0", "zram0.swap"), {"zram0": "none\n"}, ["/dev/zram0.swap"]),
        (
            HEAD + "/dev/vda2                 partition\t8388604\t0\t-2\n/swapfile file\t1\t0\t-3\n",
            {},
            ["/dev/vda2", "/swapfile"],
        ),
    ],
)
def test_memory_that_goes_to_a_disk_is_named(listed: str, backing: dict[str, str], named: list[str]) -> None:
    assert swaps(listed, backing) == named


def test_zram_devices_are_found_among_swaps() -> None:
    assert compressed(HEAD + ZRAM + "/swapfile file\t1\t0\t-3\n" + ZRAM.replace("0", "12", 1)) == ["zram0", "zram12"]


@pytest.mark.parametrize(
    ("uuid", "encrypted"),
    [
        ("CRYPT-LUKS1-5e8b4c1d-models\n", True),
        ("CRYPT-LUKS2-5e8b4c1d-models\n", True),
        ("CRYPT-PLAIN-models\n", True),
        # Checked, and in the clear.
        ("CRYPT-VERITY-5e8b4c1d-root\n", False),
        ("CRYPT-INTEGRITY-models\n", False),
        ("LVM-CRYPT-LUKS2-\n", False),
        ("", False),
    ],
)
def test_of_cryptsetups_devices_only_those_that_encrypt_are_a_place(uuid: str, encrypted: bool) -> None:
    assert is_encrypted(uuid) is encrypted
