"""It is responsible for `teemesh chat`: verify the router, ask, stream the answer, and check what proves it.

Exit status 0 only when every check passed.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from libs.client.answer import AnswerBrokenOff
from libs.client.exchange import Exchange, chat_body
from libs.client.sealing import AnswerNotSealed
from libs.client.session import RouterSession, open_session
from libs.client.trust import Trust
from libs.identity.certificate import der_of
from libs.transparency.quorum import NOBODY, Quorum
from services.cli.mesh.layout import add_state_option
from services.cli.mesh.reading import MeshReader
from services.cli.mesh.witness_options import add_witness_options, read_quorum
from services.cli.terminal.checks import print_checks, print_development, printable


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh chat`."""
    parser = subparsers.add_parser("chat", help="ask a model, and verify who answered")
    parser.add_argument("prompt")
    add_state_option(parser)
    parser.add_argument("--no-stream", action="store_true", help="wait for the whole answer")
    parser.add_argument("--e2ee", action="store_true", help="encrypt prompt and answer also within TLS (E2EE v2)")
    add_witness_options(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    quorum = read_quorum(args)
    verified = asyncio.run(chat(args.state, args.prompt, stream=not args.no_stream, quorum=quorum, sealed=args.e2ee))
    return 0 if verified else 1


async def chat(
    state: Path,
    prompt: str,
    *,
    stream: bool = True,
    console: Console | None = None,
    quorum: Quorum = NOBODY,
    sealed: bool = False,
) -> bool:
    """Ask the model of the mesh in this state folder; print the answer and the checks; say whether all passed.

    Raises what refuses the router before anything was sent, and what the router refuses with.
    """
    shown = console or Console()
    mesh = MeshReader(state / "mesh.json")
    body = chat_body(mesh.text("model"), [{"role": "user", "content": prompt}], stream=stream)
    trust = replace(read_trust(mesh), quorum=quorum)
    async with open_session(mesh.text("router_url"), mesh.text("api_key"), trust) as session:
        print_development(session.policy.development_roots, shown)
        exchange = await _ask(session, body, shown, sealed)
        return print_checks(await session.verify(exchange), shown)


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


async def _ask(session: RouterSession, body: bytes, console: Console, sealed: bool) -> Exchange:
    async with session.chat(body, sealed=sealed) as answer:
        try:
            async for piece in answer:
                console.out(printable(piece), end="", highlight=False)
        except (AnswerBrokenOff, AnswerNotSealed) as error:
            # All that came is hashed: what it is worth, the checks say.
            console.out(f"\n[{error.reason}: {printable(str(error))}]", end="", highlight=False)
        console.out("", highlight=False)
        return answer.exchange
