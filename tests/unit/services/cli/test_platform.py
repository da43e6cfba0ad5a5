from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from libs import jcs
from libs.tee.secp256k1 import is_public_key
from services.cli.local.config import Addresses, write_devtee_config
from services.cli.local.platform import PlatformNotMade, dstack_kms_root
from services.cli.mesh.layout import Layout


@pytest.fixture
def layout() -> Iterator[Layout]:
    """A prepared state folder in which nothing has run, at a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="platform") as folder:
        layout = Layout(Path(folder) / "state")
        layout.prepare()
        write_devtee_config(layout, Addresses({"pccs": 1}, 2))
        yield layout


async def test_a_platform_that_never_ran_makes_its_machine_and_stays_the_same(layout: Layout) -> None:
    root = await dstack_kms_root(layout)
    assert is_public_key(root)
    layout.reference.unlink()
    assert await dstack_kms_root(layout) == root


async def test_a_platform_that_ran_is_not_asked_again(layout: Layout) -> None:
    root = await dstack_kms_root(layout)
    layout.config("devtee").unlink()
    assert await dstack_kms_root(layout) == root


async def test_a_platform_that_cannot_be_made_says_why(layout: Layout) -> None:
    (layout.devtee / "machine.json").write_bytes(b"{}")
    with pytest.raises(PlatformNotMade, match="STATE_CORRUPT") as refusal:
        await dstack_kms_root(layout)
    assert refusal.value.reason == "PLATFORM_NOT_MADE"


async def test_a_platform_that_does_not_say_its_kms_is_refused(layout: Layout) -> None:
    await dstack_kms_root(layout)
    stated = jcs.loads_object(layout.reference.read_bytes())
    del stated["kms_public_key"]
    layout.reference.write_bytes(jcs.dumps(stated))
    with pytest.raises(PlatformNotMade, match="has no kms_public_key"):
        await dstack_kms_root(layout)
