"""It is responsible for `teemesh up`: the whole mesh on this machine, until Ctrl-C.

What it does itself is an operator's work: keys, policy, certificates, a tenant. Everything else is the services' own,
and they run exactly as they would run apart.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from libs import logs
from libs.aci.endpoints import DEFINED, paths
from libs.errors import Code, MeshError
from libs.policy.engine_server import SERVER
from libs.policy.measured_engine import MeasuredEngine, engine_of
from libs.process import until_terminated
from services.cli.local.engine import EMBEDDED, LocalEngine
from services.cli.local.run import MeshRun, RunOptions
from services.cli.mesh.layout import Layout, add_state_option, layout_of
from services.cli.mesh.lock import holding
from services.cli.mesh.roster import INSTANCE, JOBS
from services.cli.terminal.inputs import read_json

DEFAULT_ROUTER_PORT = 8443


class EngineUnclear(MeshError):
    """The options do not say what engine is to run."""

    code = Code.INVALID_ARGUMENT
    reason = "ENGINE_UNCLEAR"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh up`."""
    parser = subparsers.add_parser("up", help="run a whole mesh on this machine until Ctrl-C")
    add_state_option(parser)
    parser.add_argument(
        "--router-port", type=_port, default=DEFAULT_ROUTER_PORT, help="port of the HTTPS API (default: %(default)s)"
    )
    parser.add_argument("--demo", action="store_true", help="ask one question when ready and verify the answer")
    parser.add_argument(
        "--exit", action="store_true", help="stop once ready (with --demo: once answered); exit 1 if anything failed"
    )
    parser.add_argument(
        "--kms-replica", action="store_true", help="run a second instance of the KMS, which joins the first"
    )
    parser.add_argument(
        "--ledger-members",
        type=int,
        choices=(1, 3),
        default=1,
        help="how many members keep the log; of three, one writes, and another takes over (default: %(default)s)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        choices=range(len(JOBS) + 1),
        default=0,
        help="how many guests there are for teemesh pipeline record, with config/job-N.toml (default: %(default)s)",
    )
    parser.add_argument(
        "--certificate-seconds",
        type=_life,
        help="life of the services' certificates, 10 to 3600; short ones show renewal (default: an hour)",
    )
    parser.add_argument(
        "--keyset-seconds",
        type=_keyset_life,
        help="life of the router's keysets, 90 seconds to a week; short ones show renewal (default: a week)",
    )
    parser.add_argument(
        "--vllm",
        type=Path,
        metavar="PYTHON",
        help="run vLLM in the node, by this interpreter of an environment that has it; needs --weights",
    )
    parser.add_argument(
        "--vllm-argument",
        action="append",
        default=[],
        metavar="ARGUMENT",
        help="another argument of vLLM's server, measured with it; may be given again: --vllm-argument=--enforce-eager",
    )
    parser.add_argument(
        "--vllm-endpoint",
        action="append",
        default=[],
        choices=paths(DEFINED),
        metavar="PATH",
        help="where it is asked, measured with it; may be given again (default: chat and completions)",
    )
    parser.add_argument(
        "--engine-server",
        type=Path,
        metavar="FILE",
        help="run another OpenAI-compatible server in the node, as this file measures it: teemesh_engine of a compose",
    )
    parser.add_argument(
        "--weights", type=Path, metavar="PATH", help="the model's folder, for --vllm; or its file, for --engine-server"
    )
    parser.add_argument(
        "--parallel",
        type=_parallel,
        default=2,
        help="requests that the engine serves at once (default: %(default)s)",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    options = RunOptions(
        router_port=args.router_port,
        demo=args.demo,
        exit=args.exit,
        kms_replica=args.kms_replica,
        ledger_members=args.ledger_members,
        jobs=args.jobs,
        certificate_seconds=args.certificate_seconds,
        keyset_seconds=args.keyset_seconds,
        engine=_engine(args),
    )
    return asyncio.run(run_up(layout_of(args), options, Console()))


async def run_up(layout: Layout, options: RunOptions, console: Console) -> int:
    """Run a mesh until SIGTERM or SIGINT, or until its demonstration is over; return the exit status.

    Raises `MeshRunning`, `PortTaken` and what preparing raises; after that, what dies is restarted.
    """
    layout.prepare()
    with holding(layout.lock), _log_to(layout.log("up")):
        return await _until_terminated(MeshRun(layout, options, console).run())


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Send this process's own log to a file: the terminal is the display's."""
    logs.configure("up", INSTANCE, json=True)
    with path.open("a", encoding="utf-8") as file:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(file)
        yield
        # Whoever logs after this has nowhere to: the handlers end with the file.
        logging.getLogger().handlers.clear()


async def _until_terminated(work: Coroutine[Any, Any, int]) -> int:
    """Return what `work` returns, or 0 when it was cancelled by a signal and has cleaned up."""
    async with asyncio.TaskGroup() as tasks:
        asked = tasks.create_task(until_terminated())
        working = tasks.create_task(work)
        asked.add_done_callback(lambda _: working.cancel())
        working.add_done_callback(lambda _: asked.cancel())
    return 0 if working.cancelled() else working.result()


def _engine(args: argparse.Namespace) -> LocalEngine:
    """Raises `EngineUnclear`, and what reading the file of `--engine-server` does."""
    if args.engine_server is not None:
        if args.vllm is not None or args.vllm_argument or args.vllm_endpoint:
            raise EngineUnclear("--engine-server is another engine than --vllm: say one of them")
        server = engine_of(read_json(args.engine_server))
        if server.kind != SERVER:
            raise EngineUnclear(f"the file of --engine-server must say that its kind is {SERVER}")
        return LocalEngine(server, args.weights, args.parallel)
    if args.vllm is None:
        if args.weights is not None or args.vllm_argument or args.vllm_endpoint:
            raise EngineUnclear("--weights, --vllm-argument and --vllm-endpoint are vLLM's: say --vllm PYTHON too")
        return replace(EMBEDDED, parallel=args.parallel)
    if args.weights is None:
        raise EngineUnclear("--vllm needs --weights FOLDER: the model's files")
    endpoints = frozenset(endpoint for endpoint in DEFINED if endpoint.path in args.vllm_endpoint) or None
    measured = MeasuredEngine("vllm", str(args.vllm.absolute()), tuple(args.vllm_argument), endpoints)
    return LocalEngine(measured, args.weights, args.parallel)


def _parallel(text: str) -> int:
    return _number(text, 1, 4096)


def _port(text: str) -> int:
    return _number(text, 1, 65535)


def _life(text: str) -> int:
    return _number(text, 10, 3600)


def _keyset_life(text: str) -> int:
    return _number(text, 90, 604_800)


def _number(text: str, least: int, most: int) -> int:
    try:
        number = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("must be a number") from error
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"must be from {least} to {most}")
    return number
