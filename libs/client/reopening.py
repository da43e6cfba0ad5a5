"""Responsible for an answer that came encrypted and was kept: read again, with the key that was the request's own."""

from __future__ import annotations

import hashlib

from libs.aci import rewriting
from libs.aci.e2ee.binding import Binding
from libs.aci.e2ee.suites import SUITES
from libs.client.exchange import Exchange, OpeningKey
from libs.client.reading import StreamedText, whole_text
from libs.client.sealing import AnswerNotSealed, Opener
from libs.errors import MeshError


def opening_key(opener: Opener) -> OpeningKey:
    """Return what has to be kept of it."""
    binding = opener.binding
    return OpeningKey(binding.algo, opener.private.secret, binding.nonce, binding.timestamp)


def sealed_to(key: OpeningKey) -> str:
    """Return what `Exchange.sealed_to` is of an exchange with this key. Raises `ValueError` for what is no key."""
    return hashlib.sha256(SUITES[key.algo].key.of(key.secret).public).hexdigest()


def read_again(exchange: Exchange, key: OpeningKey) -> str:
    """Return the text of an answer that was kept.

    Raises `AnswerNotSealed`, and what reading it raised when it came.
    """
    opener, body = _opener(exchange.request, key), exchange.response or b""
    # Its media type was not kept. No stream of events begins like an object.
    if body.lstrip().startswith(b"{"):
        return whole_text(body, opener)
    text = StreamedText(opener)
    said = "".join(text.feed(body))
    text.finish()
    return said


def _opener(request: bytes, key: OpeningKey) -> Opener:
    suite = SUITES[key.algo]
    try:
        members = rewriting.loads(request)
        private = suite.key.of(key.secret)
    except (MeshError, ValueError) as error:
        raise AnswerNotSealed("the request that was kept is none that could be encrypted by this key") from error
    model = str(members.get("model")) if isinstance(members, dict) else ""
    return Opener(suite, private, Binding(key.algo, model, key.nonce, key.timestamp))
