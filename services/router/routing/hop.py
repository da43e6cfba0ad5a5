"""It is responsible for one hop to a node: a prompt over its verified channel, its bytes and its own receipt back.

What a hop tells on its way is the same for every route that a prompt may take.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import grpc.aio
from teemesh.inference.v1 import inference_pb2, inference_pb2_grpc, whole_answer_pb2, whole_answer_pb2_grpc

from libs.aci.encoding import digest, is_hex
from libs.aci.endpoints import Endpoint
from libs.aci.node_refusals import TENANT_SHARE_TAKEN
from libs.aci.receipt import verify_signed_by
from libs.aci.receipt_events import KnownEvent, ServedByNode, UpstreamVerified
from libs.aci.receipt_events import UpstreamFailed as Unverified
from libs.aci.receipt_gpus import verify_gpus
from libs.aci.whole_answers import TOO_LARGE
from libs.errors import Code, MeshError
from libs.rpc.errors import RemoteRefused, remote_errors
from services.router.errors import AnswerUndeliverable, Overloaded, UpstreamFailed, UpstreamVerificationFailed
from services.router.prompt import Prompt
from services.router.routing.listed import Upstream
from services.router.routing.settings import RoutingSettings

MAX_PROOF_BYTES = 64 << 10
"""Of what proves an answer: it goes whole into the receipt, and that into one entry of the log."""
_CONNECT_SECONDS = 5.0
_REQUESTS_FAULT = frozenset(
    {Code.INVALID_ARGUMENT, Code.OUT_OF_RANGE, Code.NOT_FOUND, Code.UNIMPLEMENTED, Code.RESOURCE_EXHAUSTED}
)
"""What a node refuses a request with that it could not be asked in any state."""


_AWAY = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})
"""What is said of a node that does not answer. All else that keeps it from being connected to is about its evidence."""


class NodeUnavailable(UpstreamFailed):
    """The node did not begin to answer, so another may be asked."""


class NodeBusy(NodeUnavailable):
    """The node runs as many requests of this tenant as it takes, whichever routers sent them."""

    status = 429
    type = Overloaded.type
    code = Code.RESOURCE_EXHAUSTED
    reason = TENANT_SHARE_TAKEN
    retry_seconds = 1


class NodeNotVerified(NodeUnavailable):
    """The node's evidence does not pass, or no longer, so it was handed nothing."""

    status = UpstreamVerificationFailed.status
    type = UpstreamVerificationFailed.type
    reason = UpstreamVerificationFailed.reason

    def __init__(self, why: str) -> None:
        super().__init__(f"the node is not verified: {why}")
        self.why = why


class NodeKeyChanged(NodeUnavailable):
    """The node answers under another key than the one that was verified. It may be genuine, but the session that the
    receipt would cite is bound to the key before.
    """

    status = UpstreamVerificationFailed.status
    type = UpstreamVerificationFailed.type
    reason = "NODE_KEY_CHANGED"


@dataclass(frozen=True, slots=True)
class Errand:
    """A prompt to be forwarded. `timeout` is for the whole hop, in seconds."""

    prompt: Prompt
    endpoint: Endpoint
    request_id: str
    tenant_id: str
    timeout: float
    required: bool
    """Whether verified serving is demanded of whoever serves it: the receipt says so."""
    sealed: bool = False
    """Whether the answer is encrypted for who asked. What is known of it in clear must not go into the receipt, then: a
    short answer can be guessed by its hash."""


@dataclass(frozen=True, slots=True)
class Reached:
    """The other side is there under the key that was verified; the next step hands it the prompt."""

    forwarded: str
    """Digest of the exact bytes that it is handed."""
    outcome: UpstreamVerified | Unverified
    """What the receipt says about whoever it is."""


@dataclass(frozen=True, slots=True)
class Begun:
    """The answer begins."""

    status: int
    content_type: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is whole; what is known of it goes into the receipt."""

    served: KnownEvent | None


Step = Reached | Begun | bytes | Ended


async def forward(upstream: Upstream, errand: Errand, settings: RoutingSettings) -> AsyncGenerator[Step, None]:
    """Yield `Reached`, then `Begun`, then bytes, then `Ended`: the node's own receipt is over exactly these bytes.

    Of an answer that is not streamed nothing comes before all of it is there, so a node that can gives it in one
    message. Raises `NodeUnavailable` before `Begun` when the node cannot be reached or is silent for too long, and
    `UpstreamFailed` when it breaks off, falls silent, or its receipt does not cover what it sent.
    """
    prompt = errand.prompt
    try:
        link = await upstream.peer.link(_CONNECT_SECONDS, preferred=upstream.link)
    except MeshError as error:
        if error.code not in _AWAY:
            raise NodeNotVerified(error.reason) from error
        raise NodeUnavailable(f"the node cannot be reached: {error.reason}") from error
    if link.lease.certificate != upstream.lease.certificate:
        raise NodeKeyChanged("the node has another key than the one verified", excused=True)
    session_id = upstream.candidate.session_id
    yield Reached(digest(prompt.forwarded), UpstreamVerified(errand.required, prompt.model, session_id))
    request = inference_pb2.InferRequest(
        endpoint=errand.endpoint.path,
        body=prompt.forwarded,
        request_id=errand.request_id,
        tenant_id=errand.tenant_id,
    )
    if upstream.gives_whole_answers and not prompt.stream:
        whole = await _whole(link.channel, request, errand)
        yield Begun(whole.head.status, whole.head.content_type)
        yield whole.body
        yield _ended(whole.conclusion.receipt, upstream, errand, digest(whole.body))
        return
    call = inference_pb2_grpc.InferenceServiceStub(link.channel).Infer(request, timeout=errand.timeout)
    begun = False
    patience = settings.first_byte_seconds if prompt.stream else _beyond(errand)
    seen = hashlib.sha256()
    try:
        while True:
            try:
                # By its deadline the call ends itself.
                async with asyncio.timeout(patience):
                    with remote_errors():
                        response = await call.read()
            except TimeoutError as error:
                silent = f"the node was silent for {patience:g} s"
                raise (UpstreamFailed(silent) if begun else NodeUnavailable(silent)) from error
            except RemoteRefused as error:
                if not begun:
                    raise _refused(error) from error
                # A channel that this router closed says nothing; why it was closed does.
                said = upstream.peer.refusal or error.reason
                raise UpstreamFailed(f"the node broke off: {said}", late=_is_late(error)) from error
            if not isinstance(response, inference_pb2.InferResponse):
                raise UpstreamFailed("the node ended without a receipt")
            match response.WhichOneof("part"):
                case "head" if not begun:
                    begun = True
                    yield Begun(response.head.status, response.head.content_type)
                case "chunk" if begun:
                    # An empty one too: it says that the node's engine works, and this stream is to be waited for.
                    patience = settings.idle_seconds
                    seen.update(response.chunk)
                    yield response.chunk
                case "conclusion" if begun:
                    yield _ended(response.conclusion.receipt, upstream, errand, "sha256:" + seen.hexdigest())
                    return
                case _:
                    raise UpstreamFailed("the node's answer is out of order")
    finally:
        call.cancel()  # When the client goes, the engine must stop at once; after the end it changes nothing.


async def _whole(
    channel: grpc.aio.Channel, request: inference_pb2.InferRequest, errand: Errand
) -> whole_answer_pb2.InferWholeResponse:
    """Return an answer that comes in one message. Raises `NodeUnavailable`, as nothing of it came before, or
    `UpstreamFailed` for one that no other node would give better.
    """
    patience = _beyond(errand)
    stub = whole_answer_pb2_grpc.WholeAnswerServiceStub(channel)
    call = stub.InferWhole(whole_answer_pb2.InferWholeRequest(request=request), timeout=errand.timeout)
    try:
        # By its deadline the call ends itself.
        async with asyncio.timeout(patience):
            with remote_errors():
                whole = await call
    except TimeoutError as error:
        raise NodeUnavailable(f"the node was silent for {patience:g} s") from error
    except RemoteRefused as error:
        if error.reason == TOO_LARGE:
            raise AnswerUndeliverable("the node's answer is too long") from error
        raise _refused(error) from error
    finally:
        call.cancel()  # When the client goes, the engine must stop at once; after the end it changes nothing.
    if not whole.HasField("head") or not whole.HasField("conclusion"):
        raise UpstreamFailed("the node answered without a head or a receipt")
    return whole


def _beyond(errand: Errand) -> float:
    """How long to wait for what ends itself by its deadline, seconds: a little longer."""
    return errand.timeout + _CONNECT_SECONDS


def _refused(error: RemoteRefused) -> NodeUnavailable:
    if error.reason == TENANT_SHARE_TAKEN:
        return NodeBusy("as many of this tenant's requests run as may; try again in 1 s", excused=True)
    excused = error.code in _REQUESTS_FAULT
    return NodeUnavailable(f"the node refused: {error.reason}", late=_is_late(error), excused=excused)


def _is_late(error: RemoteRefused) -> bool:
    return error.code == Code.DEADLINE_EXCEEDED


def _ended(receipt: bytes, upstream: Upstream, errand: Errand, response_hash: str) -> Ended:
    """Return the end of an answer whose receipt is over what was sent and came. Raises `UpstreamFailed`."""
    _verify(receipt, upstream, errand, response_hash)
    return Ended(_served_by(upstream, receipt, errand))


def _verify(receipt: bytes, upstream: Upstream, errand: Errand, response_hash: str) -> None:
    """Accept a receipt that the key in the node's evidence signed over what was sent and what came. Raises
    `UpstreamFailed`.
    """
    named = upstream.lease.appraisal.workload_claims.get("receipt_key")
    if len(receipt) > MAX_PROOF_BYTES:
        raise UpstreamFailed(f"the node's receipt is longer than the {MAX_PROOF_BYTES} bytes that can be logged")
    try:
        if not isinstance(named, str):
            raise UpstreamFailed("the node's evidence binds no receipt key")
        parsed = verify_signed_by(receipt, bytes.fromhex(named))
    except (MeshError, ValueError) as error:
        raise UpstreamFailed("the node's receipt does not verify") from error
    if parsed.returned.body_hash != response_hash:
        raise UpstreamFailed("the node's receipt is over other bytes than it sent")
    if parsed.received.body_hash != digest(errand.prompt.forwarded) or parsed.endpoint != errand.endpoint.path:
        raise UpstreamFailed("the node's receipt is for another prompt than it was sent")
    try:
        verify_gpus(parsed, upstream.gpus, upstream.lease.appraisal.workload_claims, required=upstream.needs_gpu)
    except MeshError as error:
        raise UpstreamFailed(f"the node's receipt does not name the GPUs of its evidence: {error.reason}") from error
    # A node that refuses the body names no model.
    if parsed.model not in (None, errand.prompt.model):
        raise UpstreamFailed("the node's receipt is for another model than it was asked for")


def _served_by(upstream: Upstream, receipt: bytes, errand: Errand) -> ServedByNode:
    claims = upstream.lease.appraisal.workload_claims
    arguments = str(claims.get("engine_args_sha256", ""))
    return ServedByNode(
        spiffe_id=upstream.candidate.spiffe_id,
        evidence_digest="sha256:" + upstream.candidate.evidence_digest,
        receipt_sha256=hashlib.sha256(receipt).hexdigest(),
        weights_sha256=upstream.candidate.models[errand.prompt.model],
        engine=str(claims.get("engine", "unknown")),
        engine_args_sha256=arguments if is_hex(arguments, 32) else None,
        receipt=None if errand.sealed else receipt.decode(),
    )
