"""Responsible for a client's side of E2EE v2: one request encrypted to an attested key, and its answer opened.

The key comes from the keyset that the router's evidence binds, so whoever ends TLS on the way has no part in it. A
field of an answer that does not open is never shown: to take it as it stands would let anyone there answer instead.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from libs.aci import rewriting
from libs.aci.e2ee import VERSION
from libs.aci.e2ee.binding import Binding
from libs.aci.e2ee.fields import AnswerNotUnderstood, visit_answer, visit_request
from libs.aci.e2ee.suites import SUITES, FieldNotOpened, PrivateKey, Suite
from libs.aci.keyset import Keyset
from libs.aci.rewriting import JsonNotRewritable, is_text
from libs.errors import Code, MeshError

_NONCE_BYTES = 32


class SealingNotOffered(MeshError):
    """The router's keyset lists no key to which a prompt could be encrypted."""

    code = Code.FAILED_PRECONDITION
    reason = "SEALING_NOT_OFFERED"


class AnswerNotSealed(MeshError):
    """Something in the answer is not encrypted to this request's key. It is not shown."""

    reason = "ANSWER_NOT_SEALED"


@dataclass(frozen=True, slots=True)
class SealedRequest:
    """A request as it goes out, and what opens its answer."""

    body: bytes
    """With its content encrypted."""
    clear: bytes = field(repr=False)
    """What the receipt is over: the same in clear, compact (e2ee-v2 section 8)."""
    headers: Mapping[str, str]
    suite: Suite
    private: PrivateKey = field(repr=False)
    binding: Binding

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

            visit_answer(members, opened)
        except (MeshError, UnicodeError) as error:
            raise AnswerNotSealed("a field of the answer is not encrypted to this request's key") from error
        return members


def seal(body: bytes, keyset: Keyset) -> SealedRequest:
    """Encrypt a request, every text in it that §5 has a place for, under keys and a nonce of its own.

    Raises `SealingNotOffered`, and `JsonNotRewritable` for a body that is no JSON object.
    """
    suite, service = _chosen(keyset)
    members = rewriting.loads(body)
    if not isinstance(members, dict):
        raise JsonNotRewritable("a request is a JSON object")
    clear = rewriting.dumps(members)
    private, nonce, timestamp = suite.key(), secrets.token_hex(_NONCE_BYTES), int(time.time())
    binding = Binding(suite.algo, str(members.get("model")), nonce, timestamp)
    recipient = suite.read_public(service)
    visit_request(members, lambda path, value: suite.seal(recipient, value.encode(), binding.of_request(path)))
    headers = {
        "X-E2EE-Version": VERSION,
        "X-Client-Pub-Key": private.public.hex(),
        "X-Model-Pub-Key": service,
        "X-E2EE-Nonce": nonce,
        "X-E2EE-Timestamp": str(timestamp),
    }
    return SealedRequest(rewriting.dumps(members), clear, headers, suite, private, binding)


def _chosen(keyset: Keyset) -> tuple[Suite, str]:
    """The first suite that both know, in this client's order."""
    listed = {key.algo: key.public_key for key in keyset.e2ee_public_keys}
    for algo, suite in SUITES.items():
        if algo in listed:
            return suite, listed[algo]
    raise SealingNotOffered("the router's keyset lists no key to encrypt to")
