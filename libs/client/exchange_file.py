"""Responsible for an exchange in a file: what was sent and came, and all that was had to check it by, as it came.

Nothing in the file is proven by being there. Whose word times, host and TLS keys are is its maker's; everything else
proves itself to `checks`, under a policy and a mesh CA that the reader has from elsewhere.
"""

from __future__ import annotations

from typing import Any

from libs import jcs
from libs.aci.e2ee.suites import SUITES
from libs.aci.encoding import digest
from libs.client.checks import Materials
from libs.client.exchange import Exchange, OpeningKey
from libs.client.http import MAX_DOCUMENT_BYTES
from libs.client.record import MAX_RESPONSE_BYTES
from libs.client.reopening import sealed_to
from libs.errors import Code, MeshError
from libs.policy.document import Policy
from libs.tee import shape
from libs.transparency.quorum import NOBODY, Quorum

VERSION = 1
_MEMBERS = frozenset({"v", "gathered_at", "router", "exchange", "proofs"})
_ROUTER = frozenset({"host", "tls_keys", "nonce", "report"})
_EXCHANGE = frozenset({"request", "response", "receipt_id", "sent_at_ms", "received_at_ms"})
_MAY_LACK = frozenset({"broken_off", "opening_key"})
_OPENING_KEY = frozenset({"algo", "private_key", "nonce", "timestamp"})
_SECRET_BYTES = 32
_PROOFS = (
    "receipt",
    "session",
    "foreign_session",
    "commitment",
    "issuer_evidence",
    "acknowledger_evidence",
    "ledger_evidence",
)
_MISSING = frozenset({"missing", "detail"})
_MILLISECONDS = 1000
_MAX_REQUEST_BYTES = 8 << 20

MAX_BYTES = 2 * (MAX_RESPONSE_BYTES + (1 + len(_PROOFS)) * MAX_DOCUMENT_BYTES + _MAX_REQUEST_BYTES)
"""Of a file: as hexadecimal, the largest response that a client keeps, the largest documents, and a request."""


class ExchangeFileMalformed(MeshError):
    """The bytes are no exchange in the form of this version."""

    code = Code.INVALID_ARGUMENT
    reason = "EXCHANGE_FILE_MALFORMED"


class ProofMissing(MeshError):
    """Whoever made the file did not get this from the router."""

    code = Code.NOT_FOUND
    reason = "PROOF_MISSING"


def encode(materials: Materials) -> bytes:
    """Return the file. The exchange MUST be one whose response was kept; policy, CA and quorum are not in it."""
    exchange = materials.exchange
    if exchange.response is None:
        raise ValueError("the response was not kept: its hash alone shows nobody what it said")
    return jcs.dumps(
        {
            "v": VERSION,
            "gathered_at": materials.now,
            "router": {
                "host": _sayable(materials.host),
                "tls_keys": sorted(materials.observed_spkis),
                "nonce": materials.nonce,
                "report": materials.report.hex(),
            },
            "exchange": {
                "request": exchange.request.hex(),
                "response": exchange.response.hex(),
                "receipt_id": None if exchange.receipt_id is None else _sayable(exchange.receipt_id),
                "sent_at_ms": int(exchange.sent_at * _MILLISECONDS),
                "received_at_ms": int(exchange.received_at * _MILLISECONDS),
                **_said(exchange),
            },
            "proofs": {name: _proof(getattr(materials, name)) for name in _PROOFS},
        }
    )


def decode(data: bytes, policy: Policy, mesh_ca: bytes | None, quorum: Quorum = NOBODY) -> Materials:
    """Read a file, to be judged as of when it was made. Proves nothing. Raises `ExchangeFileMalformed`."""
    try:
        members = shape.members(jcs.loads(data), _MEMBERS, "the file")
        if shape.integer(members["v"], "v") != VERSION:
            raise ValueError(f"v must be {VERSION}")
        router = shape.members(members["router"], _ROUTER, "router")
        proofs = shape.members(members["proofs"], frozenset(_PROOFS), "proofs")
        had = {name: _had(proofs[name], name) for name in _PROOFS if name != "foreign_session"}
        foreign = proofs["foreign_session"]
        gathered_at, exchange = shape.integer(members["gathered_at"], "gathered_at"), _exchange(members["exchange"])
        if not exchange.sent_at <= exchange.received_at < gathered_at + 1:
            raise ValueError("a response comes after its request, and its proofs after it")
        return Materials(
            policy=policy,
            mesh_ca=mesh_ca,
            host=shape.text(router["host"], "host"),
            report=shape.binary(router["report"], "report"),
            nonce=shape.text(router["nonce"], "nonce"),
            observed_spkis=_tls_keys(router["tls_keys"]),
            exchange=exchange,
            foreign_session=None if foreign is None else _had(foreign, "foreign_session"),
            now=gathered_at,
            quorum=quorum,
            **had,
        )
    except (ValueError, jcs.JsonMalformed) as error:
        raise ExchangeFileMalformed(f"no exchange in the form of version {VERSION}: {error}") from error


def _exchange(value: Any) -> Exchange:
    names = _EXCHANGE | (_MAY_LACK & value.keys() if isinstance(value, dict) else frozenset())
    members = shape.members(value, names, "exchange")
    response, receipt_id = shape.binary(members["response"], "response"), members["receipt_id"]
    key = _opening_key(members["opening_key"]) if "opening_key" in members else None
    return Exchange(
        request=shape.binary(members["request"], "request"),
        response_hash=digest(response),
        receipt_id=None if receipt_id is None else shape.text(receipt_id, "receipt_id"),
        sent_at=shape.integer(members["sent_at_ms"], "sent_at_ms") / _MILLISECONDS,
        received_at=shape.integer(members["received_at_ms"], "received_at_ms") / _MILLISECONDS,
        response=response,
        broken_off=shape.text(members["broken_off"], "broken_off") if "broken_off" in members else None,
        sealed_to=None if key is None else sealed_to(key),
        opening_key=key,
    )


def _said(exchange: Exchange) -> dict[str, Any]:
    """What only some exchanges have."""
    said: dict[str, Any] = {} if exchange.broken_off is None else {"broken_off": exchange.broken_off}
    if (key := exchange.opening_key) is not None:
        said["opening_key"] = {
            "algo": key.algo,
            "private_key": key.secret.hex(),
            "nonce": key.nonce,
            "timestamp": key.timestamp,
        }
    return said


def _opening_key(value: Any) -> OpeningKey:
    members = shape.members(value, _OPENING_KEY, "opening_key")
    algo = shape.text(members["algo"], "algo")
    if algo not in SUITES:
        raise ValueError("algo must be that of a suite")
    return OpeningKey(
        algo=algo,
        secret=shape.binary(members["private_key"], "private_key", _SECRET_BYTES),
        nonce=shape.text(members["nonce"], "nonce"),
        timestamp=shape.integer(members["timestamp"], "timestamp"),
    )


def _tls_keys(value: Any) -> frozenset[str]:
    if not isinstance(value, list):
        raise ValueError("tls_keys must be a list")
    return frozenset(shape.binary(key, "tls_keys", 32).hex() for key in value)


def _proof(value: bytes | MeshError | None) -> str | dict[str, str] | None:
    if isinstance(value, MeshError):
        return {"missing": value.reason, "detail": _sayable(str(value))}
    return None if value is None else value.hex()


def _had(value: Any, name: str) -> bytes | MeshError:
    if isinstance(value, str):
        return shape.binary(value, name)
    missing = shape.members(value, _MISSING, name)
    why = f"{shape.text(missing['missing'], name)}: {shape.text(missing['detail'], name)}"
    return ProofMissing(f"the {name.replace('_', ' ')} could not be had: {why}")


def _sayable(text: str) -> str:
    """A router's own words may hold halves of characters, which have no UTF-8 form: they must not prevent a file."""
    return text.encode(errors="backslashreplace").decode()
