"""It is responsible for `teemesh ledger`, and of it for `tail`: the log as it is, its hash chain checked on the way.

Exit status 6 when the log is not a continuation of what was read before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from rich.console import Console
from teemesh.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from libs.errors import Code, MeshError
from libs.events.whole_frames import entries_of
from libs.rpc.errors import to_mesh_error
from libs.transparency.chain import chain_start
from libs.transparency.note import VerifierKey
from libs.transparency.quorum import Quorum
from services.cli.ledger import prove as ledger_prove
from services.cli.ledger import vaults as ledger_vaults
from services.cli.ledger.export import add_export, add_restore
from services.cli.ledger.fsck import add_fsck
from services.cli.ledger.lines import describe_entry
from services.cli.ledger.prune import add_prune
from services.cli.ledger.read_tree import ReadTree, witnessed_head
from services.cli.ledger.set_aside import add_set_aside
from services.cli.ledger.tag_keys import add_tag_keys
from services.cli.ledger.tail_state import ChainBroken, ChainReader, TailState, keep_tail_state, load_tail_state
from services.cli.ledger.verify import add_verify
from services.cli.mesh.layout import add_state_option
from services.cli.mesh.reading import MeshReader
from services.cli.mesh.service_access import ServiceAccess, access_at, read_service_access
from services.cli.mesh.witness_options import add_witness_options, read_quorum
from services.cli.mesh.witnessed import NotWitnessed
from services.cli.terminal.inputs import InputUnreadable

DIVERGED = 6
_STATE_FILE = "ledger-tail.json"
_BATCH = 256
_SILENCE_SECONDS = 30.0
"""While following, the ledger sends a sign of life every 10 s."""
_FIRST_RETRY_SECONDS = 0.5
_LAST_RETRY_SECONDS = 10.0
_PASSING = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.ABORTED})
_DIVERGED = "LOG_DIVERGED"


class LedgerSilent(MeshError):
    """The ledger sends nothing any more."""

    code = Code.UNAVAILABLE
    reason = "LEDGER_SILENT"


@dataclass(frozen=True, slots=True)
class LedgerAccess:
    """How an operator reaches the ledger, and where the reading is remembered."""

    service: ServiceAccess
    state_file: Path
    others: tuple[ServiceAccess, ...] = ()
    """The log's other members, which serve the same."""

    @property
    def origin(self) -> str:
        return f"{self.service.trust_domain}/ledger/1"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh ledger`."""
    parser = subparsers.add_parser("ledger", help="read the transparency log; erase and hold tenants' vaults")
    commands = parser.add_subparsers(dest="ledger_command", required=True)
    tail = commands.add_parser("tail", help="print the entries since the last time, checking the hash chain")
    add_state_option(tail)
    tail.add_argument("--from", type=_index, dest="from_index", metavar="N", help="begin at this leaf index instead")
    tail.add_argument("--follow", action="store_true", help="go on as the log grows, over reconnects")
    tail.add_argument("--json", action="store_true", help="one JSON object a line")
    add_witness_options(tail)
    tail.set_defaults(run=_run_tail)
    ledger_prove.add_parsers(commands)
    ledger_vaults.add_commands(commands)
    add_tag_keys(commands)
    add_verify(commands.add_parser("verify", help="hold a log against itself, its signed heads and what others hold"))
    add_export(commands.add_parser("export", help="verify a log, and write it, or some segments, as one bundle"))
    add_restore(commands.add_parser("restore", help="make a log's folder of a bundle, every file as it was"))
    add_prune(commands)
    add_fsck(commands.add_parser("fsck", help="what a start would say of a log; reads, and cuts nothing"))
    add_set_aside(commands.add_parser("set-aside", help="keep a damaged owed.log or quarantine.log, and start without"))


def read_ledger_access(state: Path) -> LedgerAccess:
    """Read mesh.json. Raises `InputUnreadable`."""
    mesh = MeshReader(state / "mesh.json")
    domain = mesh.text("trust_domain")
    others = tuple(access_at(mesh, "ledger", target, domain) for target in mesh.any_texts("ledger_others"))
    return LedgerAccess(read_service_access(mesh, "ledger"), state / _STATE_FILE, others)


class Tail:
    """One reading of the log: where it stands, and what it prints."""

    def __init__(
        self,
        access: LedgerAccess,
        console: Console,
        *,
        from_index: int | None,
        as_json: bool,
        retry_seconds: float = _FIRST_RETRY_SECONDS,
    ) -> None:
        """Go on where the last reading stopped, unless `from_index` says otherwise. Raises `TailStateDamaged`."""
        self._access = access
        self._console = console
        self._as_json = as_json
        self._retry_seconds = retry_seconds
        self._members = (access.service, *access.others)
        self._asked = 0
        """How many members in a row did not answer, or stopped to: the next one is asked then."""
        self._kept = kept = load_tail_state(access.state_file, access.origin)
        if kept is not None and from_index is None:
            self._token = kept.token
            self.chain = ChainReader(kept.next_index, kept.chain)
            self._tree = ReadTree(kept.next_index, kept.peaks)
        else:
            start = from_index or 0
            self._token = b""
            self.chain = ChainReader(start, chain_start(access.origin) if start == 0 else None, kept)
            self._tree = ReadTree(start, () if start == 0 else None)

    async def read(self, *, follow: bool) -> None:
        """Print to the log's present end or, following, for ever. Raises `ChainBroken` and the ledger's refusals."""
        delay = self._retry_seconds
        while True:
            before = self.chain.next_index
            try:
                await self._read_once(follow=follow)
                if not follow and self._is_whole():
                    return
            except MeshError as error:
                if error.code not in _PASSING or not (follow or self._may_ask_another):
                    raise
                self._asked += 1
                self._say(f"no connection to the ledger: {error.reason}; trying again")
            # Whoever gave us entries since is well: begin with the short wait again.
            delay = self._retry_seconds if self.chain.next_index > before else min(delay * 2, _LAST_RETRY_SECONDS)
            await asyncio.sleep(delay)

    async def verify_witnessed(self, key: VerifierKey, quorum: Quorum) -> None:
        """Hold all that was read against a tree that a quorum of witnesses cosigned, and read on to its end.

        Raises `QuorumNotReached`, `TreeUnknown`, `ChainBroken` and the ledger's refusals.
        """
        if self._tree.size == 0:
            raise NotWitnessed("nothing was read that could be witnessed")
        proven = await witnessed_head(self._access.service, self._tree.size - 1, key, quorum)
        self._tree.expect(proven.checkpoint)
        if self._tree.size < proven.checkpoint.size:
            await self.read(follow=False)
        if self._tree.size < proven.checkpoint.size:
            raise ChainBroken(f"the log ends before the {proven.checkpoint.size} entries that witnesses have cosigned")
        self._say(f"witnessed up to {proven.checkpoint.size}, by {', '.join(proven.witnesses)}")

    @property
    def _may_ask_another(self) -> bool:
        return self._asked + 1 < len(self._members)

    def _is_whole(self) -> bool:
        """Whether the log reaches what was read before; one member may not know of all of it, none of them is wrong.

        Raises `ChainBroken`.
        """
        if self.chain.is_short and self._may_ask_another:
            self._asked += 1
            return False
        self.chain.verify_reaches_kept()
        return True

    async def _read_once(self, *, follow: bool) -> None:
        async with (
            self._members[self._asked % len(self._members)].channel() as channel,
            aclosing(responses(ledger_pb2_grpc.LedgerServiceStub(channel), self._request(follow))) as answers,
        ):
            async for response in answers:
                self._take(response)

    def _request(self, follow: bool) -> ledger_pb2.TailRequest:
        request = ledger_pb2.TailRequest(follow=follow, max_batch=_BATCH, whole_frames=True)
        if self._token:
            request.token = self._token
        else:
            request.from_index = self.chain.next_index
        return request

    def _take(self, response: ledger_pb2.TailResponse) -> None:
        """Nothing is printed, and no place kept, that does not follow from what was read before."""
        entries = entries_of(response, self.chain.next_index)
        if not entries and not response.chain_after:
            return  # A sign of life.
        self.chain.take([(entry.index, entry.leaf_data) for entry in entries], response.chain_after)
        self._tree.take([entry.leaf_data for entry in entries])
        for entry in entries:
            description = describe_entry(entry)
            self._console.out(
                json.dumps(description.members()) if self._as_json else description.line(), highlight=False
            )
        if response.token:
            self._token = response.token
            place = self.chain.next_index, response.chain_after, response.token
            self._keep(TailState(self._access.origin, *place, self._tree.peaks))

    def _keep(self, state: TailState) -> None:
        """Remember the farthest place only: it is what a log that was rolled back cannot show."""
        if self._kept is None or state.next_index >= self._kept.next_index:
            self._kept = state
            keep_tail_state(self._access.state_file, state)

    def _say(self, text: str) -> None:
        self._console.out(json.dumps({"notice": text}) if self._as_json else f"# {text}", highlight=False)


def _run_tail(args: argparse.Namespace) -> int:
    quorum = read_quorum(args)
    if quorum.needed and args.follow:
        raise InputUnreadable("witnesses are asked at the end of a reading, and one that follows has none")

    async def read(tail: Tail) -> None:
        await tail.read(follow=args.follow)
        if quorum.needed:
            key = VerifierKey.parse(MeshReader(args.state / "mesh.json").text("ledger_vkey"))
            await tail.verify_witnessed(key, quorum)

    console = Console()
    tail = Tail(read_ledger_access(args.state), console, from_index=args.from_index, as_json=args.json)
    try:
        asyncio.run(read(tail))
    except MeshError as error:
        if error.reason != _DIVERGED:
            raise
        Console(stderr=True).out(f"teemesh: THE LOG DIVERGED from what was read before: {error}", highlight=False)
        return DIVERGED
    return 0


async def responses(
    stub: ledger_pb2_grpc.LedgerServiceStub, request: ledger_pb2.TailRequest
) -> AsyncGenerator[ledger_pb2.TailResponse, None]:
    """Yield what the ledger sends. Raises `LedgerSilent` and the ledger's refusals."""
    call = stub.Tail(request)
    try:
        while True:
            async with asyncio.timeout(_SILENCE_SECONDS):
                response = await call.read()
            if not isinstance(response, ledger_pb2.TailResponse):
                return
            yield response
    except TimeoutError as error:
        raise LedgerSilent(f"the ledger sent nothing for {_SILENCE_SECONDS:g} s") from error
    except grpc.aio.AioRpcError as error:
        raise to_mesh_error(error) from error
    finally:
        call.cancel()


def _index(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("an index is not negative")
    return value
