"""It is responsible for `teemesh pipeline record`: a command run as a stage of a pipeline, inside an attested guest.

What speaks for the stage is the guest's measurement, so the command MUST be part of what is measured: an image that
runs what its caller asks for would put its name under anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libs import logs
from libs.config import load
from libs.errors import MeshError
from libs.events.pipeline import Step
from libs.jobs import Given, JobSettings, Recorded, SealedInput, open_job
from libs.process import protect_memory, tethered
from services.cli.terminal.inputs import InputUnreadable, read_json


class StageFailed(MeshError):
    """The command did not end well: nothing of it is recorded."""

    reason = "STAGE_FAILED"


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh pipeline record`."""
    parser = commands.add_parser("record", help="run a command as a stage, and log what it read and made")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the job's TOML file")
    parser.add_argument("--stage", required=True, choices=[step.value for step in Step], help="what it does")
    parser.add_argument("--name", required=True, help="for everybody to read")
    parser.add_argument(
        "--input", type=_named, action="append", default=[], metavar="NAME=PATH", help="what it reads; once for each"
    )
    parser.add_argument(
        "--made-by",
        type=_named,
        action="append",
        default=[],
        metavar="NAME=ENTRY",
        help="the recorded stage that made an input; without, it comes from outside",
    )
    parser.add_argument(
        "--output",
        type=_named,
        action="append",
        default=[],
        required=True,
        metavar="NAME=PATH",
        help="what it makes, which must not be there yet; once for each",
    )
    parser.add_argument(
        "--parameters", type=Path, metavar="FILE", help="JSON of its settings; the log has their digest"
    )
    parser.add_argument(
        "--privacy", type=Path, metavar="FILE", help="where the command says what privacy it spent; not there yet"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    parser.add_argument("work", nargs="+", metavar="COMMAND", help="after --: what to run, with its arguments")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    settings = load(args.config, JobSettings)
    asked = _asked(args, settings.sealed)
    logs.configure("job", settings.member.instance, json=settings.log_json)
    protect_memory()
    recorded = asyncio.run(_record(settings, asked))
    made = {artifact.name: artifact.sha256.hex() for artifact in recorded.stage.outputs}
    if args.json:
        print(json.dumps({"entry": recorded.entry_id.hex(), "outputs": made}, indent=2))
    else:
        print(f"entry {recorded.entry_id.hex()}")
        for name, sha256 in made.items():
            print(f"made  {sha256}  {name}")
        if recorded.stage.privacy is not None:
            print(f"spent {recorded.stage.privacy}")
    return 0


@dataclass(frozen=True, slots=True)
class _Asked:
    """A stage as the command line says it."""

    step: Step
    name: str
    work: Sequence[str]
    inputs: Mapping[str, Given]
    outputs: Mapping[str, Path]
    settings: Mapping[str, Any]
    privacy: Path | None


def _asked(args: argparse.Namespace, sealed: Mapping[str, SealedInput]) -> _Asked:
    """Raises `InputUnreadable`."""
    made_by = {name: _entry(text) for name, text in _each_once(args.made_by, "--made-by").items()}
    given = _each_once(args.input, "--input")
    if unknown := made_by.keys() - given.keys():
        raise InputUnreadable(f"--made-by names {min(unknown)!r}, which is no --input")
    inputs = {name: Given(Path(path), made_by.get(name), sealed.get(name)) for name, path in given.items()}
    outputs = {name: Path(path) for name, path in _each_once(args.output, "--output").items()}
    parameters = {} if args.parameters is None else read_json(args.parameters)
    return _Asked(Step(args.stage), args.name, args.work, inputs, outputs, parameters, args.privacy)


async def _record(settings: JobSettings, asked: _Asked) -> Recorded:
    async with open_job(settings) as stages:
        return await stages.run(
            asked.step,
            asked.name,
            lambda: _work(asked.work),
            inputs=asked.inputs,
            outputs=asked.outputs,
            parameters={"command": list(asked.work), "settings": dict(asked.settings)},
            privacy=asked.privacy,
        )


async def _work(command: Sequence[str]) -> None:
    """Run the command to its end, and end it with this process. Raises `StageFailed`."""
    process = await asyncio.create_subprocess_exec(*tethered(command), stdin=asyncio.subprocess.DEVNULL)
    try:
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status != 0:
        raise StageFailed(f"{command[0]} ended with status {status}: nothing is recorded")


def _each_once(pairs: Sequence[tuple[str, str]], option: str) -> Mapping[str, str]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InputUnreadable(f"{option} names the same thing twice")
    return found


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError("must be NAME=VALUE")
    return name, value


def _entry(text: str) -> bytes:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise InputUnreadable("--made-by needs an entry id: 64 hexadecimal digits")
    return bytes.fromhex(text)
