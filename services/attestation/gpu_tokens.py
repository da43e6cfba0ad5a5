"""It is responsible for GPU tokens: the vendor's verdict on what GPUs answered, asked for anew each time.

A verdict is about one nonce, so there is nothing to keep. It is signed by the vendor, and whoever relies on it verifies
it; a wrong answer from the token service can only make evidence fail.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

import aiohttp
import structlog

from libs import jcs
from libs.errors import Code, MeshError
from libs.tee.nvidia.evidence import RawReport
from libs.tee.nvidia.token import MAX_DEVICES, DetachedEat

_PATH = "/v4/attest/gpu"
_CLAIMS_VERSION = "3.0"
_MAX_ANSWER_BYTES = 512 * 1024
_NONCE_BYTES = 32

log = structlog.get_logger()


class GpuReportsMalformed(MeshError):
    """The request is not what the GPUs of one machine answered to one nonce."""

    code = Code.INVALID_ARGUMENT
    reason = "GPU_REPORTS_MALFORMED"


class GpuTokensRefused(MeshError):
    """The token service does not accept the reports."""

    code = Code.FAILED_PRECONDITION
    reason = "GPU_TOKENS_REFUSED"


class GpuTokensUnavailable(MeshError):
    """The token service cannot be reached, or its answer is none."""

    code = Code.UNAVAILABLE
    reason = "GPU_TOKENS_UNAVAILABLE"


class GpuTokens:
    """The vendor's token service."""

    def __init__(self, nras_url: str | None, timeout_seconds: float) -> None:
        self._nras_url = None if nras_url is None else nras_url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)

    async def tokens(self, nonce: bytes, architecture: str, reports: Sequence[RawReport]) -> DetachedEat:
        """Return the verdict on reports over a 32-byte nonce.

        Raises `GpuReportsMalformed`, `GpuTokensRefused`, `GpuTokensUnavailable`.
        """
        if len(nonce) != _NONCE_BYTES or not 1 <= len(reports) <= MAX_DEVICES:
            raise GpuReportsMalformed(f"a nonce has {_NONCE_BYTES} bytes, and 1 to {MAX_DEVICES} GPUs answer it")
        if self._nras_url is None:
            raise GpuTokensUnavailable("no token service is configured: set nras_url")
        request = {
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
        answer = await self._post(self._nras_url + _PATH, json.dumps(request).encode())
        try:
            eat = DetachedEat.parse(jcs.loads(answer))
        except MeshError as error:
            raise GpuTokensUnavailable(f"the token service's answer is not understood: {error}") from error
        log.info("gpu tokens fetched", architecture=architecture, devices=len(reports))
        return eat

    async def _post(self, url: str, body: bytes) -> bytes:
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout) as session,
                session.post(url, data=body, headers={"Content-Type": "application/json"}) as response,
            ):
                # One byte more than is read tells an answer that is too long from one that just fits.
                answer = await response.content.read(_MAX_ANSWER_BYTES + 1)
                while len(answer) <= _MAX_ANSWER_BYTES and (more := await response.content.read(_MAX_ANSWER_BYTES)):
                    answer += more
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise GpuTokensUnavailable(f"the token service at {url} does not answer: {error}") from error
        if len(answer) > _MAX_ANSWER_BYTES:
            raise GpuTokensUnavailable(f"the token service's answer has more than {_MAX_ANSWER_BYTES} bytes")
        if 400 <= response.status < 500:
            raise GpuTokensRefused(f"the token service refuses the reports: HTTP {response.status}")
        if response.status != 200:
            raise GpuTokensUnavailable(f"the token service answered HTTP {response.status}")
        return answer
