"""Children of a local mesh, with small programs in place of the services."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from services.cli.local.children import Children, State, last_line
from services.cli.mesh.layout import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "state")
    layout.prepare()
    return layout


async def test_a_service_that_refuses_to_start_says_why_and_is_started_again(layout: Layout) -> None:
    layout.log("devtee").write_text("an older run's last words\n")
    layout.config("devtee").write_text('state_dir = "x"\nunknown = 1\n')
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with AsyncExitStack() as stack:
        children = Children(layout, stack, lambda name, how: heard.put_nowait(f"{name}: {how}"))
        child = await children.start("devtee")
        first, second = await heard.get(), await heard.get()
        assert child.state is State.RESTARTING
    assert first.startswith("devtee: devtee exited with status 2 after ")
    assert "devtee: CONFIG_INVALID: " in first
    assert "unknown key" in second
    assert "CONFIG_INVALID" in child.status


async def test_a_service_is_ready_when_it_says_so_and_gone_at_the_end(layout: Layout) -> None:
    (layout.root / "compose" / "kms.json").write_text('{"name": "teemesh-kms"}')
    layout.config("devtee").write_text(
        f'state_dir = "{layout.devtee}"\npccs_listen = "127.0.0.1:0"\n[[instances]]\nname = "kms"\n'
        f'socket = "{layout.guest_socket("kms")}"\napp_compose = "{layout.compose("kms")}"\n'
    )
    heard: list[str] = []
    async with AsyncExitStack() as stack:
        children = Children(layout, stack, lambda name, how: heard.append(how))
        child = await children.start("devtee")
        before = child.state
        await child.until_ready()
        assert (before, child.state) == (State.STARTING, State.READY)
        assert list(children.all) == ["devtee"]
    assert next(iter(children.all.values())).state is State.STOPPED
    assert heard == []


def test_the_last_words_are_those_of_this_run(tmp_path: Path) -> None:
    log = tmp_path / "kms.log"
    assert last_line(log) == ""
    log.write_text("before\n")
    assert last_line(log, after=len("before\n")) == ""
    with log.open("a") as file:
        file.write("kms: POLICY_UNREADABLE: no\n\n")
    assert last_line(log, after=len("before\n")) == "kms: POLICY_UNREADABLE: no"
