"""It is responsible for `teemesh doctor`: what is wrong here, and what to do about it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from services.cli.doctor.findings import Finding
from services.cli.doctor.installation import examine_installation
from services.cli.doctor.running_examination import examine_running
from services.cli.doctor.state_examination import examine_state
from services.cli.local.up import DEFAULT_ROUTER_PORT
from services.cli.mesh.layout import add_state_option, layout_of
from services.cli.mesh.lock import is_held


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh doctor`."""
    parser = subparsers.add_parser("doctor", help="say what is wrong with this installation and its mesh")
    add_state_option(parser)
    parser.add_argument("--router-port", type=int, default=DEFAULT_ROUTER_PORT, help="default: %(default)s")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    layout = layout_of(args)
    findings = [*examine_installation(), *examine_state(layout, args.router_port)]
    if is_held(layout.lock):
        findings += examine_running(layout)
    return show(findings, Console())


def show(findings: Sequence[Finding], console: Console) -> int:
    """Print the findings; return 1 when something is wrong."""
    for finding in findings:
        mark = Text("ok     ", style="green") if finding.sound else Text("WRONG  ", style="red")
        console.print(mark.append(f"{finding.what}: {finding.detail}", style="default"), soft_wrap=True)
        if not finding.sound:
            console.print(Text(f"       do: {finding.remedy}"), soft_wrap=True)
    return 0 if all(finding.sound for finding in findings) else 1
