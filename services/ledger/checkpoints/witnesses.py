"""It is responsible for speaking with a witness: one request over HTTPS, and its answer, of which nothing is believed
but its own signature.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp

from libs.errors import Code, MeshError
from libs.rpc.tls import load_client_context
from libs.transparency import checkpoint as checkpoints
from libs.transparency import note as notes
from libs.transparency.add_checkpoint import (
    ADD_CHECKPOINT,
    ADD_KEY,
    SIZE_TYPE,
    AddCheckpoint,
    AddKey,
    newest_path,
)
from libs.transparency.cosignature import attach, verify_cosignature
from libs.transparency.note import Signature
from services.ledger.config import WitnessSettings

ANSWER_SECONDS = 1.0
_MAX_ANSWER_BYTES = 1 << 17
_SIZE = re.compile(rb"(0|[1-9][0-9]{0,18})\n")


class WitnessAway(MeshError):
    """The witness does not answer, or not as the protocol has it."""

    code = Code.UNAVAILABLE
    reason = "WITNESS_AWAY"


class WitnessAhead(MeshError):
    """The witness cosigned another size last than the one that the proof begins at."""

    code = Code.ABORTED
    reason = "WITNESS_AHEAD"

    def __init__(self, size: int) -> None:
        super().__init__(f"the witness cosigned {size} leaves last")
        self.size = size


class WitnessKnowsNoKey(MeshError):
    """The witness does not count the key that signed the checkpoint."""

    code = Code.PERMISSION_DENIED
    reason = "WITNESS_KNOWS_NO_KEY"


class WitnessContradicts(MeshError):
    """The witness says that the checkpoint does not extend the one that it cosigned last."""

    code = Code.DATA_LOSS
    reason = "WITNESS_CONTRADICTS"


class Witness:
    """One witness as it was configured."""

    def __init__(self, settings: WitnessSettings, session: aiohttp.ClientSession) -> None:
        """Raises `WitnessAway` where its authority's certificate cannot be read."""
        self.key = settings.key
        self._url = settings.url
        self._session = session
        self._tls = _context(settings)

    @property
    def name(self) -> str:
        return self.key.name

    async def add_checkpoint(self, request: AddCheckpoint) -> Signature:
        """Return its cosignature, verified.

        Raises `WitnessAway`, `WitnessAhead`, `WitnessKnowsNoKey` or `WitnessContradicts`.
        """
        return self._cosignature(request, await self._post(ADD_CHECKPOINT, request.encode()))

    async def add_key(self, submission: AddKey) -> Signature:
        """Bring the log's key with a checkpoint. Raises what `add_checkpoint` raises."""
        return self._cosignature(submission.request, await self._post(ADD_KEY, submission.encode()))

    async def newest(self, origin: str) -> bytes | None:
        """Return the newest checkpoint that it cosigned of a log, its cosignature verified. Raises `WitnessAway`."""
        status, answer, _ = await self._ask("GET", newest_path(origin))
        if status == 404:
            return None
        if status != 200:
            raise self._away(f"it answers {status}")
        try:
            verify_cosignature(answer, self.key)
            if checkpoints.parse(answer).origin != origin:
                raise self._away("it shows another log's checkpoint")
        except MeshError as error:
            raise self._away(f"what it shows is not its own: {error}") from error
        return answer

    async def _post(self, path: str, body: bytes) -> bytes:
        status, answer, kind = await self._ask("POST", path, body)
        if status == 200:
            return answer
        if status == 403:
            raise WitnessKnowsNoKey(f"{self.name}: {_words(answer)}")
        if status == 409 and kind == SIZE_TYPE and (size := _SIZE.fullmatch(answer)) is not None:
            raise WitnessAhead(int(size[1]))
        if status in (409, 422):
            raise WitnessContradicts(f"{self.name}: {_words(answer)}")
        raise self._away(f"it answers {status}: {_words(answer)}")

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes, str]:
        try:
            async with (
                asyncio.timeout(ANSWER_SECONDS),
                self._session.request(
                    method, self._url + path, data=body, ssl=self._tls, allow_redirects=False
                ) as response,
            ):
                answer = await response.content.read(_MAX_ANSWER_BYTES + 1)
                while len(answer) <= _MAX_ANSWER_BYTES and (more := await response.content.read(_MAX_ANSWER_BYTES)):
                    answer += more
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise self._away(f"{type(error).__name__}: {error}") from error
        if len(answer) > _MAX_ANSWER_BYTES:
            raise self._away("it answers with more than was asked for")
        return response.status, answer, response.headers.get("Content-Type", "")

    def _cosignature(self, request: AddCheckpoint, answer: bytes) -> Signature:
        try:
            for line in notes.parse_lines(answer):
                if (line.name, line.key_id) == (self.key.name, self.key.key_id):
                    verify_cosignature(attach(request.note, [line]), self.key)
                    return line
        except MeshError as error:
            raise self._away(f"it answers with no cosignature of its own: {error}") from error
        raise self._away("it answers with no cosignature by the key that is known here")

    def _away(self, why: str) -> WitnessAway:
        return WitnessAway(f"{self.name} at {self._url}: {why}")


@asynccontextmanager
async def open_witnesses(settings: Sequence[WitnessSettings]) -> AsyncIterator[Sequence[Witness]]:
    """Keep connections to the witnesses while the body runs."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        yield [Witness(each, session) for each in settings]


def _context(settings: WitnessSettings) -> ssl.SSLContext:
    if settings.ca is None:
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context
    try:
        return load_client_context(ca_pem=settings.ca.read_bytes())
    except (OSError, ValueError) as error:
        raise WitnessAway(f"{settings.ca} is no certificate of an authority: {error}") from error


def _words(answer: bytes) -> str:
    return answer[:200].decode("utf-8", "replace").strip()
