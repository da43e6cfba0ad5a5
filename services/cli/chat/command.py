"""It is responsible for `teemesh chat`: verify the router, ask, stream the answer, check what proves it, and keep that.

Exit status 0 only when every check passed. What was kept is `teemesh verify`'s to judge again.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from libs.client import exchange_file
from libs.client.answer import AnswerBrokenOff
from libs.client.checks import run_checks
from libs.client.exchange import Exchange, chat_body
from libs.client.http import AnswerUnreadable
from libs.client.sealing import AnswerNotSealed
from libs.client.session import Patience, RouterSession, open_session
from libs.client.trust import Trust
from libs.identity.certificate import der_of
from libs.transparency.quorum import NOBODY, Quorum
from services.cli.mesh.layout import add_state_option
from services.cli.mesh.reading import MeshReader
from services.cli.mesh.witness_options import add_witness_options, read_quorum
from services.cli.terminal.checks import print_checks, print_development, printable
from services.cli.terminal.inputs import refuse_existing, write_output

_OWNER_ONLY = 0o600
"""Prompt and answer lie in it in clear."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh chat`."""
    parser = subparsers.add_parser("chat", help="ask a model, and verify who answered")
    parser.add_argument("prompt")
    add_state_option(parser)
    parser.add_argument("--no-stream", action="store_true", help="wait for the whole answer")
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="keep question, answer and proofs, for teemesh verify; must not exist"
    )
    parser.add_argument("--e2ee", action="store_true", help="encrypt prompt and answer also within TLS (E2EE v2)")
    add_witness_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    quorum = read_quorum(args)
    asked = chat(args.state, args.prompt, stream=not args.no_stream, quorum=quorum, save=args.save, sealed=args.e2ee)
    return 0 if asyncio.run(asked) else 1


async def chat(
    state: Path,
    prompt: str,
    *,
    stream: bool = True,
    console: Console | None = None,
    quorum: Quorum = NOBODY,
    save: Path | None = None,
    sealed: bool = False,
    patience: Patience | None = None,
) -> bool:
    """Ask the model of the mesh in this state folder; print the answer and the checks; say whether all passed.

    Raises what refuses the router before anything was sent, and what the router refuses with; also `OutputExists` and
    `OutputUnwritable`.
    """
    if save is not None:
        refuse_existing(save)
    shown = console or Console()
    mesh = MeshReader(state / "mesh.json")
    body = chat_body(mesh.text("model"), [{"role": "user", "content": prompt}], stream=stream)
    trust = replace(read_trust(mesh), quorum=quorum)
    async with open_session(mesh.text("router_url"), mesh.text("api_key"), trust, patience=patience) as session:
        print_development(session.policy.development_roots, shown)
        materials = await session.gather(await _ask(session, body, shown, keep=save is not None, sealed=sealed))
        if save is not None:
            # Before it is judged: what is against the router must not depend on how that ends.
            await asyncio.to_thread(write_output, save, exchange_file.encode(materials), _OWNER_ONLY)
            shown.out(f"kept in {save}", highlight=False)
        # Three appraisals take longer than the loop should wait.
        return print_checks(await asyncio.to_thread(run_checks, materials), shown)


def read_trust(mesh: MeshReader) -> Trust:
    """Return the anchors that mesh.json names. Raises `InputUnreadable`, `CertificateNotAccepted`."""
    return Trust(
        signed_policy=mesh.file("policy"),
        operator_keys=mesh.keys("operator_public_keys"),
        operator_threshold=mesh.number("operator_threshold"),
        trust_domain=mesh.text("trust_domain"),
        ca_pem=mesh.file("router_ca"),
        mesh_ca=der_of(mesh.file("mesh_ca")),
    )


async def _ask(session: RouterSession, body: bytes, console: Console, *, keep: bool, sealed: bool) -> Exchange:
    async with session.chat(body, keep=keep, sealed=sealed) as answer:
        try:
            async for piece in answer:
                console.out(printable(piece), end="", highlight=False)
        except (AnswerBrokenOff, AnswerNotSealed, AnswerUnreadable) as error:
            # All that came is hashed: what it is worth, the checks say.
            console.out(f"\n[{error.reason}: {printable(str(error))}]", end="", highlight=False)
        console.out("", highlight=False)
        return answer.exchange
