"""Requests of every kind to a running mesh, each with words of its own, and what was answered."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import secrets
import signal
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from teemesh.inference.v1 import inference_pb2, inference_pb2_grpc

from libs.rpc.channel import open_channel
from tests.mesh.aci.sealing import X25519, Envelope
from tests.mesh.aci.wire import ATTESTATION, CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, Answer, Router, bearer
from tests.mesh.nodes import engines_below
from tests.mesh.patience import until
from tests.mesh.running import RunningMesh

COUNT_TOKENS = "/v1/messages/count_tokens"
_TOKENS = 24
_TOLD = frozenset({"content", "delta", "text"})
"""The members in which the APIs say what the model said."""


@dataclass(slots=True)
class Conversations:
    """One tenant's, over HTTPS and gRPC. What was said is kept by what it was."""

    mesh: RunningMesh
    mark: str = field(default_factory=lambda: secrets.token_hex(12))
    """With it every prompt begins, and so does whatever else of a body is a client's own words."""
    asked: set[str] = field(default_factory=set)
    """What was asked, by what it was."""
    said: dict[str, str] = field(default_factory=dict)
    """What the model said."""

    @property
    def router(self) -> Router:
        return Router(self.mesh.mesh["router_url"], self.mesh.mesh["router_ca"])

    @property
    def model(self) -> str:
        return str(self.mesh.mesh["model"])

    @property
    def key(self) -> str:
        return str(self.mesh.mesh["api_key"])

    def words(self, name: str) -> str:
        """A prompt that nobody else has."""
        self.asked.add(name)
        return f'{self.mark}{secrets.token_hex(4)} is a "lighthouse" near Žďár\\. Tell a long story about it.'

    def body(self, endpoint: str, name: str, **members: Any) -> bytes:
        text = self.words(name)
        turns = [{"role": "user", "content": text}]
        asked: dict[str, Any]
        match endpoint:
            case "/v1/chat/completions":
                asked = {"messages": turns, "max_tokens": _TOKENS, "ignore_eos": True}
            case "/v1/completions":
                asked = {"prompt": text, "max_tokens": _TOKENS, "ignore_eos": True}
            case "/v1/messages":
                asked = {"messages": turns, "max_tokens": _TOKENS, "system": self.words(f"{name}, the system's")}
            case "/v1/responses":
                instructions = self.words(f"{name}, instructions")
                asked = {"input": text, "max_output_tokens": _TOKENS, "instructions": instructions}
            case "/v1/embeddings":
                asked = {"input": text}
            case _:
                asked = {"messages": turns}
        return json.dumps({"model": self.model, **asked, **members}, ensure_ascii=False).encode()

    def post(self, endpoint: str, body: bytes, headers: Any = ()) -> Answer:
        return self.router.post(endpoint, body, key=self.key, headers=headers)

    def over_https(self) -> None:
        """Everything that the model says something to, buffered and streamed, and what it only reads."""
        for endpoint in (CHAT, COMPLETIONS, MESSAGES, RESPONSES):
            for stream in (False, True):
                name = f"{endpoint} {'streamed' if stream else 'buffered'}"
                answer = self.post(endpoint, self.body(endpoint, name, stream=stream))
                assert answer.status == 200, answer.body
                self.said[name] = told(answer.body)
        for endpoint in (EMBEDDINGS, COUNT_TOKENS):
            assert self.post(endpoint, self.body(endpoint, endpoint)).status == 200

    def over_grpc(self) -> None:
        for stream in (False, True):
            name = f"gRPC {'streamed' if stream else 'buffered'}"
            self.said[name] = told(asyncio.run(self._infer(self.body(CHAT, name, stream=stream))))

    async def _infer(self, body: bytes) -> bytes:
        described = self.mesh.mesh
        request = inference_pb2.InferRequest(endpoint=CHAT, body=body, request_id=secrets.token_hex(8))
        async with open_channel(
            described["router_grpc"], root_pem=self.mesh.file("router_ca"), server_name="localhost"
        ) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            call = stub.Infer(request, timeout=60, metadata=(("authorization", f"Bearer {self.key}"),))
            return b"".join([part.chunk async for part in call])

    def encrypted(self) -> None:
        keyset = self.router.get(ATTESTATION).json["attestation"]["workload_keyset"]
        (entry,) = [each for each in keyset["e2ee_public_keys"] if each["algo"] == X25519]
        for stream in (False, True):
            name = f"encrypted {'streamed' if stream else 'buffered'}"
            envelope = Envelope.to(entry, self.model)
            sealed = envelope.seal("messages.0.content", self.words(name))
            body = {
                "model": self.model,
                "messages": [{"role": "user", "content": sealed}],
                "max_tokens": _TOKENS,
                "ignore_eos": True,
                "stream": stream,
            }
            answer = self.post(CHAT, json.dumps(body, separators=(",", ":")).encode(), envelope.headers({}))
            assert answer.status == 200, answer.body
            part = "delta" if stream else "message"
            self.said[name] = "".join(
                envelope.unseal(f"choices.0.{part}.content", value, document["id"])
                for document in documents(answer.body)
                for choice in document["choices"]
                if (value := choice[part].get("content"))
            )

    def refused(self) -> None:
        """By the router, by the node and by the engine."""
        whole = self.body(CHAT, "cut")
        turns = [{"role": "user", "content": self.words("with a member that is not known")}]
        # More than the engine makes of it: it writes the whole grammar to where errors go.
        often = {"type": "array", "items": {"type": "string"}, "minItems": 60_000}
        schema = {"type": "object", "properties": {self.words("as a property"): often}}
        kept_to = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
        part = {"type": self.words("as a type")}
        long = self.words("too long") * 400
        bodies = {
            "no JSON": whole[:-1],
            "member": self.body(CHAT, "member", **{self.words("name of a member"): 1}),
            "another member": json.dumps({"model": self.model, "messages": turns, "priority": 1}).encode(),
            "cache salt": self.body(CHAT, "cache salt", cache_salt=self.words("salt")),
            "role": self.body(CHAT, "role", messages=[{"role": [self.words("as a role")], "content": "Hi"}]),
            "image": self.body(CHAT, "image", messages=[{"role": "user", "content": [part]}]),
            "tools": self.body(CHAT, "tools", tools=self.words("as tools")),
            "schema": self.body(CHAT, "schema", response_format=kept_to),
            "too long": self.body(CHAT, "long", messages=[{"role": "user", "content": long}]),
            "too large": self.body(CHAT, "large", user="x" * (2 << 20)),
            "session": self.body(CHAT, "session", provider={"aci_session_ids": [self.words("as a session")]}),
        }
        answers = {name: self.post(CHAT, body).status for name, body in bodies.items()}
        assert all(400 <= status < 600 for status in answers.values()), answers
        twice = b'{"model":"a",' + self.body(MESSAGES, "named twice")[1:]
        assert self.post(MESSAGES, twice).status == 400

    def left(self) -> None:
        """In the middle of an answer, and in the middle of a prompt."""
        with self._streaming("left in the middle"):
            pass
        body = self.body(CHAT, "half a prompt")
        connection = self.connect()
        connection.putrequest("POST", CHAT)
        for header, value in [*bearer(self.key), ("Content-Length", str(2 * len(body)))]:
            connection.putheader(header, value)
        connection.endheaders(body)
        connection.close()

    def broken_off(self) -> None:
        """By an engine that is killed in the middle of an answer."""
        (engine,) = engines_below(self.mesh.up.pid)
        with self._streaming("broken off") as stream:
            os.kill(engine, signal.SIGKILL)
            self.said["broken off"] += told(stream.response.read(), whole=False)
        until(lambda: self.post(CHAT, self.body(CHAT, "afterwards")).status == 200, self.mesh.logs)

    def _streaming(self, name: str) -> _Streaming:
        return _Streaming(self, name, self.body(CHAT, name, stream=True, max_tokens=1500))

    def connect(self) -> http.client.HTTPSConnection:
        host = urlsplit(self.mesh.mesh["router_url"])
        context = ssl.create_default_context(cafile=self.mesh.mesh["router_ca"])
        return http.client.HTTPSConnection(str(host.hostname), host.port, timeout=60, context=context)


class _Streaming:
    """An answer of which the beginning has come. Its connection is closed with the block, whatever is still to come."""

    def __init__(self, conversations: Conversations, name: str, body: bytes) -> None:
        self._conversations = conversations
        self._name = name
        self._body = body

    def __enter__(self) -> _Streaming:
        conversations = self._conversations
        self._connection = conversations.connect()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {conversations.key}"}
        self._connection.request("POST", CHAT, self._body, headers)
        self.response = self._connection.getresponse()
        assert self.response.status == 200
        said = ""
        while len(said) < 60:
            line = self.response.readline()
            assert line, "the stream ended by itself"
            said += told(line, whole=False)
        conversations.said[self._name] = said
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


def told(body: bytes, *, whole: bool = True) -> str:
    """What the model said in an answer or in events of one."""
    said = "".join(text for document in documents(body) for text in _texts(document))
    assert said or not whole, body
    return said


def documents(body: bytes) -> list[Any]:
    """The JSON of an answer, or of each event."""
    if body.startswith(b"{"):
        return [json.loads(body)]
    lines = [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: {")]
    return [json.loads(line) for line in lines]


def _texts(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, str) and name in _TOLD:
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, name)
    elif isinstance(value, dict):
        for member, inner in value.items():
            yield from _texts(inner, member)
