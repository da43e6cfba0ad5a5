"""Responsible for a client's side of E2EE v2: one request encrypted to an attested key, and its answer opened.

The key comes from the keyset that the router's evidence binds, so whoever ends TLS on the way cannot read what is sent.
That the answer is the router's, and for nobody else, only the receipt shows: whoever knows the headers can encrypt one.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from libs.aci import rewriting
from libs.aci.e2ee import VERSION
from libs.aci.e2ee.binding import Binding
from libs.aci.e2ee.fields import AnswerNotUnderstood, visit_answer
from libs.aci.e2ee.suites import SUITES, FieldNotOpened, PrivateKey, Suite
from libs.aci.keyset import Keyset
from libs.aci.rewriting import is_text
from libs.errors import Code, MeshError

_NONCE_BYTES = 32
_MESSAGE_MEMBERS = {"role", "content"}
_SAYS_NOTHING = {
    "model",
    "messages",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "n",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "provider",
}
"""What may stay in clear."""


class SealingNotOffered(MeshError):
    """The router's keyset lists no key to which a prompt could be encrypted."""

    code = Code.FAILED_PRECONDITION
    reason = "SEALING_NOT_OFFERED"


class SealingIncomplete(MeshError):
    """The request says something for which the protocol has no place, or nothing at all. Nothing was sent."""

    code = Code.INVALID_ARGUMENT
    reason = "SEALING_INCOMPLETE"


class AnswerNotSealed(MeshError):
    """Something in the answer is not encrypted to this request's key. It is not shown."""

    reason = "ANSWER_NOT_SEALED"


@dataclass(frozen=True, slots=True)
class Opener:
    """What opens the answer to one request, and nothing else."""

    suite: Suite
    private: PrivateKey = field(repr=False)
    binding: Binding

    @property
    def client_key_sha256(self) -> str:
        """What the receipt has to name: that the answer is for this key."""
        return hashlib.sha256(self.private.public).hexdigest()

    def open(self, data: str | bytes) -> dict[str, Any]:
        """Return an answer, or one event's data, in clear. Raises `AnswerNotSealed`."""
        try:
            members = rewriting.loads(data.encode() if isinstance(data, str) else data)
            if not isinstance(members, dict):
                raise AnswerNotUnderstood("the answer is not an object")
            named = members.get("id")
            response_id = named if is_text(named) else ""

            def opened(path: str, value: Any) -> str:
                if not is_text(value):
                    raise FieldNotOpened
                return self.suite.open(self.private, value, self.binding.of_response(path, response_id)).decode()

            return visit_answer(members, opened)
        except (MeshError, UnicodeError) as error:
            raise AnswerNotSealed("a field of the answer is not encrypted to this request's key") from error


@dataclass(frozen=True, slots=True)
class SealedRequest:
    """A request as it goes out, and what opens its answer."""

    body: bytes
    """With its content encrypted."""
    clear: bytes = field(repr=False)
    """What the receipt is over: the same in clear, compact (e2ee-v2 section 8)."""
    headers: Mapping[str, str]
    opener: Opener


def seal(body: bytes, keyset: Keyset) -> SealedRequest:
    """Encrypt a chat request under keys and a nonce of its own: each message's content as a whole, as a text or a list
    of parts of any kind. A text that reads as a list goes as a part, or the other side would take it for one.

    Raises `SealingNotOffered`, `SealingIncomplete`, and `JsonNotRewritable` for a body that is no JSON.
    """
    suite, service = _chosen(keyset)
    members = _chat(body)
    clear = rewriting.dumps(members)
    private, nonce, timestamp = suite.key(), secrets.token_hex(_NONCE_BYTES), int(time.time())
    binding = Binding(suite.algo, members["model"], nonce, timestamp)
    recipient = suite.read_public(service)
    for number, message in enumerate(members["messages"]):
        content = message["content"]
        plaintext = content.encode() if is_text(content) else rewriting.dumps(content)
        message["content"] = suite.seal(recipient, plaintext, binding.of_request(f"messages.{number}.content"))
    headers = {
        "X-E2EE-Version": VERSION,
        "X-Client-Pub-Key": private.public.hex(),
        "X-Model-Pub-Key": service,
        "X-E2EE-Nonce": nonce,
        "X-E2EE-Timestamp": str(timestamp),
    }
    return SealedRequest(rewriting.dumps(members), clear, headers, Opener(suite, private, binding))


def _chat(body: bytes) -> dict[str, Any]:
    """Return a request of which all that it says is in its messages' contents, each a text or a list."""
    members = rewriting.loads(body)
    if (
        not isinstance(members, dict)
        or not is_text(members.get("model"))
        or not isinstance(members.get("messages"), list)
    ):
        raise SealingIncomplete("a chat request has a model and messages")
    if named := sorted(members.keys() - _SAYS_NOTHING):
        raise SealingIncomplete(f"a request cannot be encrypted with {named[0][:40]!r}")
    if not members["messages"]:
        raise SealingIncomplete("a request without messages has nothing to encrypt")
    for message in members["messages"]:
        if not isinstance(message, dict) or not message.keys() <= _MESSAGE_MEMBERS:
            raise SealingIncomplete("a message can be encrypted that has a role and a content, and nothing else")
        message["content"] = _content(message.get("content"))
    return members


def _content(content: object) -> object:
    if isinstance(content, list):
        return content
    if not is_text(content):
        raise SealingIncomplete("a content is a text or a list of parts")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise SealingIncomplete("a content has no UTF-8") from error
    # Beyond what JSON takes for the beginning of a list, so that no reader's leniency matters.
    return [{"type": "text", "text": content}] if content.lstrip().startswith("[") else content


def _chosen(keyset: Keyset) -> tuple[Suite, str]:
    """The first suite that both know, in this client's order."""
    listed = {key.algo: key.public_key for key in keyset.e2ee_public_keys}
    for algo, suite in SUITES.items():
        if algo in listed:
            return suite, listed[algo]
    raise SealingNotOffered("the router's keyset lists no key to encrypt to")
