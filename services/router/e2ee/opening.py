"""Responsible for opening encrypted requests (e2ee-v2 §3, §5 and §7): headers first, then each sealed field.

Whoever sends any of the protocol's headers means to be encrypted: what is missing or wrong is refused, never read as if
it had come in clear.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from libs.aci import rewriting
from libs.aci.e2ee import VERSION
from libs.aci.e2ee.binding import Binding
from libs.aci.e2ee.fields import visit_request
from libs.aci.e2ee.suites import E2eeKeyInvalid, FieldNotOpened, Suite
from libs.aci.endpoints import Endpoint
from libs.aci.json_values import MOST_VALUES, has_more_values, most_values, values_in
from libs.aci.receipt_events import Encrypted
from libs.aci.rewriting import JsonNotRewritable, NameRepeated, is_text
from libs.errors import MeshError
from services.router.e2ee.errors import (
    ClientKeyRefused,
    ContentWithoutPlace,
    DecryptionFailed,
    EndpointWithoutFields,
    HeaderMissing,
    ModelKeyMismatch,
    ModelNotBound,
    NonceRefused,
    TimestampRefused,
    VersionNotSupported,
)
from services.router.e2ee.window import AcceptanceWindow
from services.router.errors import TooManyValues
from services.router.prompt import MAX_MODEL_CHARACTERS
from services.router.reading import Reading
from services.router.workload.generation import E2eeKey, Generation

_VERSION_HEADER, _OLDER = "x-e2ee-version", "x-signing-algo"
_CLIENT_KEY, _MODEL_KEY, _NONCE, _TIMESTAMP = "x-client-pub-key", "x-model-pub-key", "x-e2ee-nonce", "x-e2ee-timestamp"
_NEEDED = (_CLIENT_KEY, _MODEL_KEY, _NONCE, _TIMESTAMP)
HEADERS = (_VERSION_HEADER, *_NEEDED, _OLDER)
"""Those by which a request asks for encryption, in lower case."""

MOST_FIELDS = 1024
MOST_SEALED_VALUES = 1 << 14
"""Of all of a request's contents that are each sealed as a list of parts: nothing outside says how many they are."""
_ANSWERED_IN_CLEAR = ("tools", "functions", "logprobs", "top_logprobs", "prompt_logprobs", "echo")
_NONCE_FORM = re.compile(r"[0-9a-fA-F]{64}")
_TIMESTAMP_FORM = re.compile(r"[0-9]{1,15}")
_LIST_START = re.compile(rb"[ \t\r\n]*\[")


@dataclass(frozen=True, slots=True)
class Envelope:
    """How the answer to one request goes back."""

    suite: Suite
    key_id: str
    client: bytes
    binding: Binding

    def event(self) -> Encrypted:
        """Return what the receipt says of it."""
        return Encrypted(VERSION, self.suite.algo, self.key_id, hashlib.sha256(self.client).hexdigest())


@dataclass(frozen=True, slots=True)
class Opened:
    """A request in clear: the body that engines and receipts know."""

    body: bytes
    envelope: Envelope
    keyset_digest: str
    """Of the keyset that lists the key it came encrypted to: the one that its client verified."""


class Keys(Protocol):
    """The keys of keysets that are in force."""

    def listing(self, text: str) -> tuple[Generation, E2eeKey] | None:
        """Return the key that a client means, and the keyset that lists it."""
        ...


class Opening:
    """Opens requests with this router's keys."""

    def __init__(self, keys: Keys, window: AcceptanceWindow, reading: Reading) -> None:
        self._keys = keys
        self._window = window
        self._reading = reading

    async def open(
        self, tenant_id: str, seconds: float, headers: Mapping[str, str], endpoint: Endpoint, body: bytes
    ) -> Opened:
        """Open a request that has any of `HEADERS`, and may wait so many seconds for its turn. Raises `E2eeRefused`,
        `TooManyRemembered`, `TooManyValues` or `BodiesBusy`.

        A request that comes as far as its fields has used up its nonce, whoever it says that the answer is for: one
        that was recorded cannot be sent again under another client's key.
        """
        if not endpoint.e2ee:
            raise EndpointWithoutFields("E2EE v2 has no fields for this endpoint")
        _require_version(headers)
        nonce = headers[_NONCE]
        if _NONCE_FORM.fullmatch(nonce) is None:
            raise NonceRefused("X-E2EE-Nonce must be exactly 64 hex digits")
        timestamp = self._timestamp(headers[_TIMESTAMP])
        generation, key = self._key(headers[_MODEL_KEY])
        try:
            client = key.suite.read_public(headers[_CLIENT_KEY])
        except E2eeKeyInvalid as error:
            raise ClientKeyRefused("X-Client-Pub-Key is no public key of the suite") from error

        def read() -> tuple[bytes, Binding]:
            members = _members(body)
            binding = _bind(key, members.get("model"), nonce, timestamp)
            _require_answerable(members)
            self._window.take(tenant_id, timestamp, key.private.public, bytes.fromhex(nonce))
            try:
                return _restore(members, key, binding), binding
            except (FieldNotOpened, JsonNotRewritable) as error:
                raise DecryptionFailed from error

        # Every field costs a key agreement, for which nobody else shall wait. Nothing is read before there is a thread:
        # what was would lie there until then, many times as large as it came.
        agreed = _most_sealed(body, key.suite) * key.suite.agreement_values
        restored, binding = await self._reading.opening(tenant_id, most_values(body), agreed, seconds, read)
        return Opened(restored, Envelope(key.suite, key.key_id, client, binding), generation.digest)

    def _timestamp(self, text: str) -> int:
        if _TIMESTAMP_FORM.fullmatch(text) is None:
            raise TimestampRefused("X-E2EE-Timestamp must be whole Unix seconds")
        self._window.judge(int(text))
        return int(text)

    def _key(self, text: str) -> tuple[Generation, E2eeKey]:
        if (found := self._keys.listing(text)) is None:
            raise ModelKeyMismatch("X-Model-Pub-Key is no E2EE key of a keyset of this service that is in force")
        return found


def _require_version(headers: Mapping[str, str]) -> None:
    if _OLDER in headers:
        raise VersionNotSupported("X-Signing-Algo asks for an older protocol, which is not served")
    version = headers.get(_VERSION_HEADER)
    if version is None:
        raise HeaderMissing("X-E2EE-Version is missing")
    if version != VERSION:
        raise VersionNotSupported(f"X-E2EE-Version must be {VERSION}")
    for name in _NEEDED:
        if name not in headers:
            raise HeaderMissing(f"{name} is missing")


def _members(body: bytes) -> dict[str, Any]:
    if has_more_values(body, MOST_VALUES):
        raise TooManyValues(f"the body has more than {MOST_VALUES} JSON values")
    try:
        members = rewriting.loads(body)
    except JsonNotRewritable as error:
        raise DecryptionFailed from error
    if not isinstance(members, dict):
        raise DecryptionFailed
    return members


def _require_answerable(members: Mapping[str, Any]) -> None:
    """Refuse what would be answered in members that the protocol leaves in clear. Raises `ContentWithoutPlace`."""
    asked = [name for name in _ANSWERED_IN_CLEAR if members.get(name) not in (None, False)]
    if asked:
        raise ContentWithoutPlace(f"E2EE v2 encrypts no answer to {', '.join(asked)}")


def _bind(key: E2eeKey, model: object, nonce: str, timestamp: int) -> Binding:
    if not is_text(model):
        raise ModelNotBound("the request has no model")
    if len(model) > MAX_MODEL_CHARACTERS:
        raise ModelNotBound("the model's name is too long")  # It is hashed with every field.
    binding = Binding(key.suite.algo, model, nonce, timestamp)
    try:
        binding.of_request("")
    except MeshError as error:
        raise ModelNotBound("the model's name has no UTF-8") from error
    return binding


def _restore(members: dict[str, Any], key: E2eeKey, binding: Binding) -> bytes:
    """Put what was sealed in its place and write it all down. Raises `FieldNotOpened` or `JsonNotRewritable`."""
    opened, values = 0, 0

    def visit(path: str, value: str) -> Any:
        nonlocal opened, values
        if not key.suite.looks_sealed(value):
            return value
        opened += 1
        if opened > MOST_FIELDS:
            raise FieldNotOpened
        plaintext = key.suite.open(key.private, value, binding.of_request(path))
        if not path.endswith(".content") or _LIST_START.match(plaintext) is None:
            return _text(plaintext)
        more = values_in(plaintext)
        if values + more > MOST_SEALED_VALUES:
            raise TooManyValues(f"the sealed contents have more than {MOST_SEALED_VALUES} JSON values")
        content = _parts(plaintext)
        values += more if isinstance(content, list) else 0
        return content

    visit_request(members, visit)
    if not opened:
        raise FieldNotOpened
    return rewriting.dumps(members)


def _most_sealed(body: bytes, suite: Suite) -> int:
    """Return how many fields are sealed, at most: each is a text without quotes in it, as long as a key at least."""
    long_texts = re.finditer(rb'"[^"]{%d}' % (2 * suite.public_bytes), body)
    return sum(1 for _ in islice(long_texts, MOST_FIELDS))


def _parts(plaintext: bytes) -> Any:
    """A message's whole content: a list of parts if that is what it reads as, else a text."""
    text = _text(plaintext)
    try:
        return rewriting.loads(plaintext)
    except NameRepeated as error:
        raise FieldNotOpened from error
    except JsonNotRewritable:
        return text


def _text(plaintext: bytes) -> str:
    try:
        return plaintext.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FieldNotOpened from error
