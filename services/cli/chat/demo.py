"""It is responsible for the demonstration: one question, its answer, and every check of it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from libs.errors import MeshError
from services.cli.chat.command import chat

QUESTION = "What is the capital of France? Answer in one sentence."


async def demonstrate(state: Path, console: Console) -> bool:
    """Ask, stream the answer, verify it; say whether every check passed. A refusal on the way counts as one failed."""
    console.print(f'\n> teemesh chat "{QUESTION}"', markup=False, highlight=False, soft_wrap=True)
    try:
        return await chat(state, QUESTION, console=console)
    except MeshError as error:
        console.print(f"teemesh: {error.reason}: {error}", markup=False, highlight=False, soft_wrap=True)
        return False
