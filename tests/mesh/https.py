"""A bare HTTPS client: what is sent is exactly what a test says."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error_type(self) -> str:
        """`type` of an OpenAI-shaped error."""
        error = self.json["error"]
        assert isinstance(error["message"], str)
        assert error["message"]
        kind: str = error["type"]
        return kind


@dataclass(frozen=True, slots=True)
class Https:
    """One router."""

    url: str
    ca: str
    api_key: str

    def get(self, path: str, *, authorized: bool = True) -> Answer:
        return self._send("GET", path, None, authorized)

    def post(self, path: str, body: bytes, *, authorized: bool = True) -> Answer:
        return self._send("POST", path, body, authorized)

    def _send(self, method: str, path: str, body: bytes | None, authorized: bool) -> Answer:
        host = urlsplit(self.url)
        connection = http.client.HTTPSConnection(
            str(host.hostname), host.port, timeout=60, context=ssl.create_default_context(cafile=self.ca)
        )
        headers = {"Content-Type": "application/json"}
        if authorized:
            headers["Authorization"] = f"Bearer {self.api_key}"
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read())
        finally:
            connection.close()
