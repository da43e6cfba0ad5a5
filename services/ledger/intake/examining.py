"""It is responsible for the examiner process as the ledger sees it.

What it vouches for is taken into the log without being opened again, so each answer names the very bytes it is about,
and one that does not ends the ledger. So does the examiner's end: the next start reads the stream from where the log
stands, and nothing was told to anyone about what was not in it.
"""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NoReturn

from libs import jcs
from libs.errors import Code, MeshError
from libs.events.batches import Batch
from libs.events.consume import StreamMessage
from services.ledger.children import Child, open_child
from services.ledger.intake.examination import Request, VaultKeys, read_marks

_ANSWER_SECONDS = 60.0
_PIPE_BYTES = 1024 * 1024
"""What Linux lets everyone have."""


class ExaminerGone(MeshError):
    """The examiner process ended or does not answer: the ledger must start anew."""

    code = Code.UNAVAILABLE
    reason = "EXAMINER_GONE"


class ExaminerWrong(MeshError):
    """The examiner answered about something else than it was asked."""

    code = Code.DATA_LOSS
    reason = "EXAMINER_WRONG"


class ExaminerProcess:
    """A running examiner."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._number = 0
        self._answers = asyncio.Lock()

    @property
    def pid(self) -> int:
        return self._child.process.pid

    async def watch(self) -> NoReturn:
        """Raise `ExaminerGone` as soon as it has ended."""
        await self._child.process.wait()
        raise ExaminerGone("the examiner process ended")

    async def opening(self, read: Sequence[tuple[StreamMessage, Batch]], vaults: VaultKeys) -> Sequence[frozenset[int]]:
        """Return of each message the numbers of its sealed records that open with these keys, and are what they should.

        May be asked again before it has answered, so that the process finds its next work waiting. Raises
        `ExaminerGone` or `ExaminerWrong`.
        """
        self._number += 1
        answered = await self._ask(Request(self._number, vaults, [message.data for message, _ in read]))
        if len(answered) != len(read):
            raise ExaminerWrong("the examiner answered about more or fewer messages than it was asked")
        found = [read_marks(batch, each) for (_, batch), each in zip(read, answered, strict=True)]
        opens = [each for each in found if each is not None]
        if len(opens) != len(read):
            raise ExaminerWrong("the examiner answered about another message than it was asked")
        return opens

    async def _ask(self, request: Request) -> Sequence[Any]:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                self._child.requests.write(request.encode())
                # Nothing is awaited in between, so answers are waited for in the order in which they come. Nor is it
                # waited for that the pipe takes it all: it will only when what was asked before is answered.
                async with self._answers:
                    return await self._answer_to(request)
        except (OSError, TimeoutError) as error:
            raise ExaminerGone("the examiner process does not answer") from error

    async def _answer_to(self, request: Request) -> Sequence[Any]:
        while True:
            # Whoever asked before may have been cancelled, and its answer is still to come.
            answered = await self._read_answer()
            if answered["number"] == request.number:
                return list(answered["messages"])

    async def _read_answer(self) -> dict[str, Any]:
        line = await self._child.answers.readline()
        if not line:
            raise ExaminerGone("the examiner process ended")
        return jcs.loads_object(line)


@asynccontextmanager
async def open_examiner() -> AsyncIterator[ExaminerProcess]:
    """Run an examiner while the body runs. It ends with this process, however that ends."""
    async with open_child("services.ledger.examiner") as child:
        pipe = child.requests.get_extra_info("pipe")
        # What it holds at once need not be brought piece by piece, each waiting for a turn of a busy event loop. Where
        # a user has many pipes already, Linux refuses a larger one, and the smaller one does the same more slowly.
        with suppress(PermissionError):
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        yield ExaminerProcess(child)
