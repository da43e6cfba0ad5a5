"""It is responsible for the auditor process as the ledger sees it, and for asking it for checkpoints in time.

A refusal ends the ledger: its memory and its files disagree, and the next start finds out which is wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from libs import jcs
from libs.errors import Code, MeshError
from libs.transparency import checkpoint
from libs.transparency.note import VerifierKey
from services.ledger.children import Child, open_child
from services.ledger.growth import Growth

MAX_UNSIGNED_LEAVES = 10_000
_ANSWER_SECONDS = 600.0
"""The first request of a process reads at least a segment, at worst the whole log."""
_REMEMBERED = 4096


class AuditorGone(MeshError):
    """The auditor process ended, and the checkpoint key with it: the ledger must start anew."""

    code = Code.UNAVAILABLE
    reason = "AUDITOR_GONE"


class AuditorRefused(MeshError):
    """The auditor does not sign what the writer says."""

    code = Code.DATA_LOSS
    reason = "AUDITOR_REFUSED"
    exit_status: ClassVar[int] = 3


class NoCheckpoint(MeshError):
    """Nothing was signed yet."""

    code = Code.NOT_FOUND
    reason = "NO_CHECKPOINT"


@dataclass(frozen=True, slots=True)
class SignedTree:
    """A checkpoint, and the note that it was read from."""

    size: int
    root: bytes
    note: bytes


class AuditorProcess:
    """A running auditor."""

    def __init__(self, child: Child, origin: str, checkpoint_key: bytes) -> None:
        self._child = child
        self.checkpoint_key = checkpoint_key
        self._verifier = VerifierKey(origin, checkpoint_key)
        self._one_request = asyncio.Lock()

    @property
    def pid(self) -> int:
        return self._child.process.pid

    async def watch(self) -> NoReturn:
        """Raise `AuditorGone` as soon as it has ended, also when nothing is to be signed for a while."""
        await self._child.process.wait()
        raise AuditorGone("the auditor process ended")

    async def sign(self, size: int, root: bytes) -> SignedTree:
        """Return the signed tree. Raises `AuditorRefused` or `AuditorGone`."""
        note = (await self._ask({"size": size, "root": root.hex()}, "note")).encode()
        signed = checkpoint.verify(note, self._verifier)
        if (signed.size, signed.root) != (size, root):
            raise AuditorRefused("it signed another tree than the one asked for")
        return SignedTree(size, root, note)

    async def keep_witnessed(self, cosigned: bytes) -> None:
        """Have a note kept with its witnesses' lines. Raises `AuditorRefused` or `AuditorGone`."""
        await self._ask({"witnessed": cosigned.decode()}, "kept")

    async def sign_receipts(self, size: int) -> bytes:
        """Return the signature of COSE receipts in a tree that was signed. Raises `AuditorRefused` or `AuditorGone`."""
        return bytes.fromhex(await self._ask({"receipts": size}, "signature"))

    async def _ask(self, request: dict[str, Any], wanted: str) -> Any:
        async def ask() -> dict[str, Any]:
            async with self._one_request:
                return await _ask(self._child, request)

        # What a caller who gave up does not wait for is read all the same: left there, it would answer the next one.
        answer = await asyncio.shield(ask())
        if wanted not in answer:
            raise AuditorRefused(f"{answer['refused']}: {answer['detail']}")
        return answer[wanted]


@asynccontextmanager
async def open_auditor(directory: Path, origin: str) -> AsyncIterator[AuditorProcess]:
    """Run an auditor while the body runs. It ends with this process, however that ends. Raises `AuditorGone`."""
    async with open_child("services.ledger.auditor", str(directory), origin) as child:
        born = await _ask(child, None)
        yield AuditorProcess(child, origin, bytes.fromhex(born["checkpoint_key"]))


class Checkpoints:
    """The newest signed trees, and the task that has them signed."""

    def __init__(
        self,
        auditor: AuditorProcess,
        growth: Growth,
        sync_watermark: Callable[[], Awaitable[None]],
        interval_seconds: float,
        *,
        has_witnesses: bool = False,
    ) -> None:
        """`sync_watermark` makes the log's own floor durable: before a size is signed, never after."""
        self._auditor = auditor
        self._growth = growth
        self._sync_watermark = sync_watermark
        self._interval = interval_seconds
        self._signed: OrderedDict[int, SignedTree] = OrderedDict()
        self._witnessed: SignedTree | None = None
        self._has_witnesses = has_witnesses
        self._covered = Growth(0, b"")
        """How far the log is signed."""
        self._cosigned = Growth(0, b"")
        """How far it is witnessed."""

    @property
    def newest(self) -> SignedTree:
        """Raises `NoCheckpoint`."""
        if not self._signed:
            raise NoCheckpoint("nothing was signed yet: ask again")
        return next(reversed(self._signed.values()))

    @property
    def witnessed(self) -> SignedTree:
        """The newest tree that a quorum of witnesses cosigned. Raises `NoCheckpoint`."""
        if self._witnessed is None:
            raise NoCheckpoint("no quorum of witnesses has cosigned a tree of this process yet")
        return self._witnessed

    @property
    def witnessed_size(self) -> int:
        """How much of the log is witnessed."""
        return self._cosigned.size

    async def signed_beyond(self, size: int) -> SignedTree:
        """Wait until a tree of more than `size` leaves is signed, and return the newest."""
        await self._covered.beyond(size)
        return self.newest

    async def witnessed_beyond(self, size: int) -> SignedTree:
        """Wait until a tree of more than `size` leaves is witnessed, and return the newest."""
        await self._cosigned.beyond(size)
        return self.witnessed

    async def witness(self, tree: SignedTree) -> None:
        """Release a tree whose note a quorum of witnesses cosigned. Raises `AuditorRefused` or `AuditorGone`."""
        await self._auditor.keep_witnessed(tree.note)
        self._witnessed = tree
        self._cosigned.reach(tree.size, tree.root)

    async def sign_receipts(self, tree: SignedTree) -> bytes:
        """Return the signature of COSE receipts in one of the newest trees. Raises `AuditorRefused`, `AuditorGone`."""
        return await self._auditor.sign_receipts(tree.size)

    def provable(self, index: int) -> SignedTree:
        """Return the tree to prove a leaf in: the newest witnessed one that has it, or else the newest.

        Raises `NoCheckpoint`.
        """
        witnessed = self._witnessed
        return self.newest if witnessed is None or witnessed.size <= index else witnessed

    async def covering(self, size: int) -> SignedTree:
        """Wait for a tree of at least this many leaves that is signed and, where the log has witnesses, witnessed.

        Returns the newest.
        """
        await (self._cosigned if self._has_witnesses else self._covered).beyond(size - 1)
        return self.witnessed if self._has_witnesses else self.newest

    def note(self) -> bytes:
        """Return the newest note, empty where there is none."""
        return self.newest.note if self._signed else b""

    def of_size(self, size: int) -> bytes:
        """Return the note of a tree of this size, empty where none of the last few thousand has it."""
        signed = self._signed.get(size)
        return b"" if signed is None else signed.note

    def root_of(self, size: int) -> bytes | None:
        """Return the root that was signed for this size, None where none of the last few thousand has it."""
        signed = self._signed.get(size)
        return None if signed is None else signed.root

    async def keep(self) -> None:
        """Have the log signed whenever it has grown, for ever. Raises `AuditorRefused` or `AuditorGone`."""
        size, at = self._covered.size, -self._interval
        while True:
            await self._growth.beyond(size)
            try:
                async with asyncio.timeout(max(at + self._interval - time.monotonic(), 0)):
                    await self._growth.beyond(size + MAX_UNSIGNED_LEAVES - 1)
            except TimeoutError:
                pass  # Time is up; what has grown until now is signed.
            size, root = self._growth.size, self._growth.root
            await self.sign(size, root)
            at = time.monotonic()

    async def sign(self, size: int, root: bytes) -> None:
        """Have a tree signed that counts, and is no smaller than any signed before.

        Raises `AuditorRefused` or `AuditorGone`.
        """
        await self._sync_watermark()
        signed = await self._auditor.sign(size, root)
        self._signed[size] = signed
        if len(self._signed) > _REMEMBERED:
            self._signed.popitem(last=False)
        self._covered.reach(size, root)


async def _ask(child: Child, request: dict[str, Any] | None) -> dict[str, Any]:
    """Send a request, if any, and return the next answer."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            if request is not None:
                child.requests.write(jcs.dumps(request) + b"\n")
                await child.requests.drain()
            line = await child.answers.readline()
    except (OSError, TimeoutError) as error:
        raise AuditorGone("the auditor process does not answer") from error
    if not line:
        raise AuditorGone("the auditor process ended")
    return jcs.loads_object(line)
