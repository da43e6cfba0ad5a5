"""It is responsible for GPU tokens: the vendor's verdict on what GPUs, or the switches between them, answered, and who
certified the keys that signed.

A verdict is about one nonce, so it is asked for anew each time. The keys change daily and are kept for minutes. Whoever
relies on a verdict verifies it, and the certificates up to an authority that policy pins; a wrong answer from the token
service can only make evidence fail. Anybody may ask, so what is sent on is bounded, and so are those who wait and how
long: each listener has places of its own, and on one that asks nobody for a certificate, junk can take all of them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp
import structlog

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee.nvidia.chain import MAX_CHAIN_BYTES
from libs.tee.nvidia.evidence import RawReport
from libs.tee.nvidia.jwks import JwksMalformed, PublishedKey, read_jwks
from libs.tee.nvidia.keys import KeyChains
from libs.tee.nvidia.report import MAX_REPORT_BYTES
from libs.tee.nvidia.token import MAX_DEVICES, DetachedEat, key_ids

KEYS_SECONDS = 600
"""How long a key set is used. A key that the issuer withdrew is vouched for no longer than that."""

GPUS, SWITCHES = "/v4/attest/gpu", "/v4/attest/switch"
"""What is asked about, as a path of the token service."""

_KEYS_PATH = "/.well-known/jwks.json"
_CLAIMS_VERSION = "3.0"
_MAX_ANSWER_BYTES = 512 * 1024
_NONCE_BYTES = 32
_ARCHITECTURE = re.compile(r"[A-Z0-9_]{1,32}")
_AT_ONCE = 4
"""So many requests are at the vendor; a few more wait, each within its own time."""

_MAX_WAITING = 32
"""So many wait: each holds up to 768 KiB of reports."""

_KEYS_SHARE = 0.5
"""Of the time for a verdict, for its keys: a key set that does not come leaves time to say so to those who wait."""

_FAILURE_SECONDS = 5.0
"""How long a key set that did not come is not asked for again."""

log = structlog.get_logger()


class GpuReportsMalformed(MeshError):
    """The request is not what the devices of one machine answered to one nonce."""

    code = Code.INVALID_ARGUMENT
    reason = "GPU_REPORTS_MALFORMED"


class GpuTokensRefused(MeshError):
    """The token service does not accept the reports."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_TOKENS_REFUSED"


class GpuTokensUnavailable(MeshError):
    """The token service cannot be reached, or answers with no verdict, or with none under a key that it publishes."""

    code = Code.UNAVAILABLE
    reason = "GPU_TOKENS_UNAVAILABLE"


class GpuTokensBusy(MeshError):
    """Too many wait for the token service already: ask again later."""

    code = Code.RESOURCE_EXHAUSTED
    reason = "GPU_TOKENS_BUSY"


@dataclass(frozen=True, slots=True)
class SignedTokens:
    """A verdict, and the certificates of the keys that signed it. Nothing of it is verified."""

    eat: DetachedEat
    keys: KeyChains
    """A key that its issuer does not certify is not in it; a policy may pin it."""


class GpuTokens:
    """The vendor's token service, as one listener asks it: listeners that share one wait behind each other's callers.

    `clock` is in seconds and never goes back.
    """

    def __init__(
        self, nras_url: str | None, timeout_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._nras_url = None if nras_url is None else nras_url.rstrip("/")
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._asking = 0
        self._keys: Mapping[str, PublishedKey] = {}
        self._keys_until = clock()
        self._keys_failure = ""
        self._keys_failed_until = clock()
        self._fetching_keys = asyncio.Lock()

    async def tokens(
        self, nonce: bytes, architecture: str, reports: Sequence[RawReport], path: str = GPUS
    ) -> SignedTokens:
        """Return the verdict on reports over a 32-byte nonce. `path` is `GPUS` or `SWITCHES`.

        Raises `GpuReportsMalformed`, `GpuTokensRefused`, `GpuTokensUnavailable`, `GpuTokensBusy`.
        """
        _check(nonce, architecture, reports)
        if self._nras_url is None:
            raise GpuTokensUnavailable("no token service is configured: set nras_url")
        if self._asking >= _AT_ONCE + _MAX_WAITING:
            raise GpuTokensBusy("too many wait for the token service: ask again later")
        self._asking += 1
        try:
            async with asyncio.timeout(self._timeout_seconds), self._room:
                signed = await self._ask_vendor(self._nras_url, path, _request(nonce, architecture, reports))
        except TimeoutError as error:
            raise GpuTokensUnavailable(f"no verdict within {self._timeout_seconds:g} s") from error
        finally:
            self._asking -= 1
        log.info("gpu tokens fetched", architecture=architecture, devices=len(reports), certified_keys=len(signed.keys))
        return signed

    async def _ask_vendor(self, nras_url: str, path: str, posted: bytes) -> SignedTokens:
        # The time is the caller's to bound.
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
            status, answer = await _ask(session, "POST", nras_url + path, posted)
            if 400 <= status < 500:
                raise GpuTokensRefused(f"the token service refuses the reports: HTTP {status}")
            if status != 200:
                raise GpuTokensUnavailable(f"the token service answered HTTP {status}")
            try:
                eat = DetachedEat.parse(jcs.loads(answer))
                named = key_ids(eat)
            except MeshError as error:
                raise GpuTokensUnavailable(f"the token service's answer is not understood: {error}") from error
            return SignedTokens(eat, await self._chains(session, nras_url + _KEYS_PATH, named))

    async def _chains(self, session: aiohttp.ClientSession, url: str, named: frozenset[str]) -> KeyChains:
        async with self._fetching_keys:
            # The set that is kept may be older than a key; a set that was just fetched lacks it for good.
            if self._clock() >= self._keys_until or named - self._keys.keys():
                await self._renew_keys(session, url)
            keys = self._keys
        if unknown := named - keys.keys():
            raise GpuTokensUnavailable(f"the token service signs with a key that it does not publish: {min(unknown)}")
        return {key_id: keys[key_id].certificates for key_id in sorted(named) if keys[key_id].certificates}

    async def _renew_keys(self, session: aiohttp.ClientSession, url: str) -> None:
        if self._clock() < self._keys_failed_until:
            raise GpuTokensUnavailable(self._keys_failure)
        try:
            async with asyncio.timeout(self._timeout_seconds * _KEYS_SHARE):
                self._keys = await _fetch_keys(session, url)
        except (GpuTokensUnavailable, TimeoutError) as error:
            self._keys_failure = str(error) or "the token service's keys do not come"
            self._keys_failed_until = self._clock() + _FAILURE_SECONDS
            raise GpuTokensUnavailable(self._keys_failure) from error
        self._keys_until = self._clock() + KEYS_SECONDS


def _check(nonce: bytes, architecture: str, reports: Sequence[RawReport]) -> None:
    """Raise `GpuReportsMalformed` for what no machine's GPUs answer."""
    if len(nonce) != _NONCE_BYTES or not 1 <= len(reports) <= MAX_DEVICES:
        raise GpuReportsMalformed(f"a nonce has {_NONCE_BYTES} bytes, and 1 to {MAX_DEVICES} devices answer it")
    if _ARCHITECTURE.fullmatch(architecture) is None:
        raise GpuReportsMalformed("an architecture is named as the vendor does, for example HOPPER")
    for raw in reports:
        if len(raw.report) > MAX_REPORT_BYTES or len(raw.certificate_chain.encode()) > MAX_CHAIN_BYTES:
            raise GpuReportsMalformed(
                f"a report has at most {MAX_REPORT_BYTES} bytes, its certificate chain {MAX_CHAIN_BYTES}"
            )


def _request(nonce: bytes, architecture: str, reports: Sequence[RawReport]) -> bytes:
    return json.dumps(
        {
            "nonce": nonce.hex(),
            "arch": architecture,
            "claims_version": _CLAIMS_VERSION,
            "evidence_list": [
                {
                    "evidence": base64.b64encode(raw.report).decode(),
                    "certificate": base64.b64encode(raw.certificate_chain.encode()).decode(),
                }
                for raw in reports
            ],
        }
    ).encode()


async def _fetch_keys(session: aiohttp.ClientSession, url: str) -> Mapping[str, PublishedKey]:
    status, document = await _ask(session, "GET", url)
    if status != 200:
        raise GpuTokensUnavailable(f"the token service has no keys: HTTP {status}")
    try:
        return read_jwks(document)
    except JwksMalformed as error:
        raise GpuTokensUnavailable(f"the token service's keys are not understood: {error}") from error


async def _ask(session: aiohttp.ClientSession, method: str, url: str, body: bytes | None = None) -> tuple[int, bytes]:
    headers = {} if body is None else {"Content-Type": "application/json"}
    try:
        # A redirect would lead to hosts that nobody configured.
        async with session.request(method, url, data=body, headers=headers, allow_redirects=False) as response:
            # One byte more than is read tells an answer that is too long from one that just fits.
            answer = await response.content.read(_MAX_ANSWER_BYTES + 1)
            while len(answer) <= _MAX_ANSWER_BYTES and (more := await response.content.read(_MAX_ANSWER_BYTES)):
                answer += more
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise GpuTokensUnavailable(f"the token service at {url} does not answer: {error}") from error
    if len(answer) > _MAX_ANSWER_BYTES:
        raise GpuTokensUnavailable(f"the token service's answer has more than {_MAX_ANSWER_BYTES} bytes")
    return response.status, answer
