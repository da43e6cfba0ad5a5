"""A client of E2EE v2 as a test needs it: its headers, its sealed fields, and what it reads of an answer."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field, replace
from typing import Any

from libs.aci.e2ee.binding import Binding
from libs.aci.e2ee.suites import PrivateKey
from services.router.workload.generation import E2eeKey, Generation


@dataclass(frozen=True, slots=True)
class Client:
    """One request's."""

    key: E2eeKey
    private: PrivateKey
    model: str = "m"
    nonce: str = field(default_factory=lambda: secrets.token_hex(32))
    timestamp: int = field(default_factory=lambda: int(time.time()))

    @property
    def binding(self) -> Binding:
        return Binding(self.key.suite.algo, self.model, self.nonce, self.timestamp)

    def headers(self, **changed: str | None) -> dict[str, str]:
        values = {
            "x-e2ee-version": "2",
            "x-client-pub-key": self.private.public.hex(),
            "x-model-pub-key": self.key.private.public.hex(),
            "x-e2ee-nonce": self.nonce,
            "x-e2ee-timestamp": str(self.timestamp),
            **{name.replace("_", "-"): value for name, value in changed.items()},
        }
        return {name: value for name, value in values.items() if value is not None}

    def seal(self, path: str, plaintext: str | bytes) -> str:
        data = plaintext.encode() if isinstance(plaintext, str) else plaintext
        return self.key.suite.seal(self.key.private.public, data, self.binding.of_request(path))

    def chat(self, content: Any, **members: Any) -> bytes:
        return json.dumps({"model": self.model, "messages": [{"role": "user", "content": content}], **members}).encode()

    def sealed_chat(self, text: str | bytes = "secret") -> bytes:
        return self.chat(self.seal("messages.0.content", text))

    def open(self, path: str, value: str, response_id: str = "") -> str:
        return self.key.suite.open(self.private, value, self.binding.of_response(path, response_id)).decode()


class ListedKeys:
    """A keyset in force that lists these keys."""

    def __init__(self, *keys: E2eeKey) -> None:
        self.generation = replace(Generation.born("spiffe://mesh.test/router/one", 1 << 40, ()), e2ee_keys=keys)

    def listing(self, text: str) -> tuple[Generation, E2eeKey] | None:
        return next(((self.generation, key) for key in self.generation.e2ee_keys if key.listed_as(text)), None)
