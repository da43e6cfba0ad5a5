"""It is responsible for what the registry keeps of a node, and for its form at rest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

from libs import jcs
from libs.errors import Code, MeshError
from libs.policy.members import Members

RECORD_VERSION = 1
REGION = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
ENGINE_NAME = re.compile(r"[!-~][ -~]{0,127}")
NODE_INSTANCE = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
SPIFFE_ID = re.compile(f"spiffe://[a-z0-9][a-z0-9.-]{{0,200}}/node/{NODE_INSTANCE.pattern}")
_OPERATOR = re.compile(r"spiffe://[a-z0-9][a-z0-9.-]{0,200}/operator/[a-z0-9][a-z0-9-]{0,39}")
REASON = re.compile(r"[ -~]{0,200}")
_TEXT = re.compile(r"[!-~]{1,300}")
MODEL_ID = re.compile(r"\S.{0,255}")
_DIGEST_BYTES = 32
MAX_PERMILLE = 1000
_MAX_COUNT = 0xFFFFFFFF


class ProviderRecordMalformed(MeshError):
    """The store holds something that no registry wrote, or one that writes another version of records."""

    code = Code.DATA_LOSS
    reason = "PROVIDER_RECORD_MALFORMED"


@dataclass(frozen=True, slots=True)
class Load:
    """What a node last reported: requests running, waiting, and how many it can run at once."""

    running: int = 0
    waiting: int = 0
    capacity: int = 0
    kv_cache_permille: int | None = None
    """How much of its key-value cache is in use, in thousandths; None when its engine does not say."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What generates a node's answers."""

    name: str = ""
    arguments_sha256: str = ""
    """Hex; empty when the evidence does not claim it, and so is the name."""


class State(Enum):
    """Whether a node takes new work."""

    ACTIVE = auto()
    DRAINING = auto()
    DRAINED = auto()
    """Nothing runs or waits on it any more."""


@dataclass(frozen=True, slots=True)
class Drain:
    """An operator's word that a node shall take no new work."""

    by: str
    """SPIFFE ID of the operator."""
    reason: str
    at_ms: int

    def encode(self) -> bytes:
        return jcs.dumps({"v": RECORD_VERSION, "by": self.by, "reason": self.reason, "at_ms": self.at_ms})


@dataclass(frozen=True, slots=True)
class Provider:
    """One node."""

    spiffe_id: str
    endpoint: str
    models: tuple[tuple[str, str], ...]
    """(id, SHA-256 of the weights in hex), in order of the id."""
    evidence_digest: str
    spki_sha256: str
    session_id: str
    lease_until_ms: int
    load: Load = Load()
    draining: bool = False
    """The node's own word."""
    engine: Engine = Engine()
    region: str = ""
    """Empty when the evidence claims none."""
    drain: Drain | None = None
    """An operator's. It is kept beside this record and not in it, so that nothing that a node does can undo it."""

    @property
    def state(self) -> State:
        if not self.draining and self.drain is None:
            return State.ACTIVE
        return State.DRAINING if self.load.running or self.load.waiting else State.DRAINED

    def serves(self, model: str) -> bool:
        return any(served == model for served, _ in self.models)

    def encode(self) -> bytes:
        load = {"running": self.load.running, "waiting": self.load.waiting, "capacity": self.load.capacity}
        if self.load.kv_cache_permille is not None:
            load["kv_cache_permille"] = self.load.kv_cache_permille
        return jcs.dumps(
            {
                "v": RECORD_VERSION,
                "spiffe_id": self.spiffe_id,
                "endpoint": self.endpoint,
                "models": [{"id": model, "weights_sha256": weights} for model, weights in self.models],
                "evidence_digest": self.evidence_digest,
                "spki_sha256": self.spki_sha256,
                "session_id": self.session_id,
                "lease_until_ms": self.lease_until_ms,
                "load": load,
                "draining": self.draining,
                "engine": {"name": self.engine.name, "arguments_sha256": self.engine.arguments_sha256},
                "region": self.region,
            }
        )


def decode(data: bytes) -> Provider:
    """Raises `ProviderRecordMalformed`."""
    members = _members(data)
    provider = Provider(
        spiffe_id=members.text("spiffe_id", SPIFFE_ID),
        endpoint=members.text("endpoint", _TEXT),
        models=tuple(_model(model) for model in members.objects("models")),
        evidence_digest=members.hexadecimal("evidence_digest", _DIGEST_BYTES),
        spki_sha256=members.hexadecimal("spki_sha256", _DIGEST_BYTES),
        session_id=members.hexadecimal("session_id", _DIGEST_BYTES),
        lease_until_ms=members.integer("lease_until_ms", 0),
        load=_load(members.object("load")),
        draining=members.flag("draining"),
        engine=_engine(members.object("engine")),
        region=members.text("region", _or_empty(REGION)),
    )
    members.end()
    return provider


def decode_drain(data: bytes) -> Drain:
    """Raises `ProviderRecordMalformed`."""
    members = _members(data)
    drain = Drain(
        by=members.text("by", _OPERATOR), reason=members.text("reason", REASON), at_ms=members.integer("at_ms", 0)
    )
    members.end()
    return drain


def _members(data: bytes) -> Members:
    try:
        value = jcs.loads_object(data)
    except jcs.JsonMalformed as error:
        raise ProviderRecordMalformed(f"a record cannot be read: {error}") from error
    members = Members(value, "", ProviderRecordMalformed)
    # Before anything else: what a later version says under the same names may mean something else.
    members.integer("v", RECORD_VERSION, RECORD_VERSION)
    return members


def _model(members: Members) -> tuple[str, str]:
    model = (members.text("id", MODEL_ID), members.hexadecimal("weights_sha256", _DIGEST_BYTES))
    members.end()
    return model


def _load(members: Members) -> Load:
    load = Load(
        running=members.integer("running", 0, _MAX_COUNT),
        waiting=members.integer("waiting", 0, _MAX_COUNT),
        capacity=members.integer("capacity", 0, _MAX_COUNT),
        kv_cache_permille=(
            members.integer("kv_cache_permille", 0, MAX_PERMILLE) if members.has("kv_cache_permille") else None
        ),
    )
    members.end()
    return load


def _engine(members: Members) -> Engine:
    engine = Engine(
        name=members.text("name", _or_empty(ENGINE_NAME)),
        arguments_sha256=members.text("arguments_sha256", re.compile(r"([0-9a-f]{64})?")),
    )
    members.end()
    return engine


def _or_empty(pattern: re.Pattern[str]) -> re.Pattern[str]:
    return re.compile(f"({pattern.pattern})?")
