"""Rows about what every document says: challenge, key, log, measurement, machine, claims (steps 5 to 11)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from libs import jcs
from libs.tee import eventlog, registers
from libs.tee.appraisal import OwnNonce
from libs.tee.challenge import Challenge
from libs.tee.device import DeviceLists, FamilyListed
from libs.tee.eventlog import RUNTIME_EVENT_TYPE, Event
from libs.tee.measurement import MeasurementSet
from libs.tee.role import RoleRules
from libs.tee.rules import AllOf, AnyOf
from services.devtee.machine import InstanceIdentity, VirtualTd
from services.devtee.quotes import make_quote
from tests.unit.libs.tee.bad_evidence.row import Benches, Present, Row, edited, good_gpu, presenting
from tests.unit.libs.tee.bad_evidence.tdx_rows import with_quote
from tests.unit.libs.tee.bench import CLAIMS, COMPOSE, NOW, Bench

WEIGHTS = "ab" * 32
_MODEL = "smollm2-135m"
NODE_CLAIMS: dict[str, Any] = {
    "role": "node",
    "engine": "vllm",
    "engine_args_sha256": "00" * 32,
    "models": [{"id": _MODEL, "weights_sha256": WEIGHTS}],
    "receipt_key": "00" * 32,
    "gpu_evidence_sha256": None,
}


def _rules(change: Callable[[Bench], RoleRules]) -> Callable[[Benches], Present]:
    """Good evidence under other rules."""
    return lambda b: presenting(b.tdx.evidence().document, change(b.tdx), b.tdx.context())


def _context(**changes: Any) -> Callable[[Benches], Present]:
    """Good evidence before a verifier who knows something else."""
    return lambda b: presenting(b.tdx.evidence().document, b.tdx.rules(), replace(b.tdx.context(), **changes))


def _challenge(make: Callable[[Benches], Challenge]) -> Callable[[Benches], Present]:
    return lambda b: presenting(b.tdx.evidence(challenge=make(b)).document, b.tdx.rules(), b.tdx.context())


def _document(change: Callable[[dict[str, Any]], None]) -> Callable[[Benches], Present]:
    return lambda b: presenting(edited(b.tdx.evidence(), change), b.tdx.rules(), b.tdx.context())


def _claims(claims: dict[str, Any], role: str = "node") -> Callable[[Benches], Present]:
    """Claims that the quote binds, before a policy that allows one model."""

    def make(benches: Benches) -> Present:
        rules = replace(benches.tdx.rules(role), models={_MODEL: frozenset({WEIGHTS})})
        return presenting(benches.tdx.evidence(claims=claims).document, rules, benches.tdx.context())

    return make


def _own_nonce(benches: Benches) -> Present:
    context = replace(benches.tdx.context(), challenge=OwnNonce(bytes(32)))
    return presenting(benches.tdx.evidence().document, benches.tdx.rules(), context)


def _claims_of_another(value: dict[str, Any]) -> None:
    value["claims"]["log_key"] = "01" * 32


def _key_of_another(value: dict[str, Any]) -> None:
    value["spki"] = "00" * 91


def _replayed(benches: Benches) -> Present:
    bench = benches.tdx
    return presenting(bench.evidence(report_data=b"\x01" * 64).document, bench.rules(), bench.context())


def _challenge_member(name: str, value: Any) -> Callable[[Benches], Present]:
    def change(document: dict[str, Any]) -> None:
        document["challenge"]["document"][name] = value

    return _document(change)


def _foreign_signature(benches: Benches) -> Challenge:
    return replace(benches.other.issuer.challenge(), certificate_der=benches.tdx.issuer.certificate_der)


def _logged(change: Callable[[list[Event]], Sequence[Event]], stripped: bool = False) -> Callable[[Benches], Present]:
    """A log that was changed after the boot that it tells of."""

    def make(benches: Benches) -> Present:
        bench = benches.tdx
        log = list(change(list(bench.event_log)))
        if stripped:
            log = [replace(event, digest=b"") if event.imr == 3 else event for event in log]
        return presenting(bench.evidence(event_log=log).document, bench.rules(), bench.context())

    return make


def _forged(stripped: bool) -> Callable[[Benches], Present]:
    """Another app-compose beside a log rewritten to match it: all that the signed registers do not cover agrees."""
    compose = COMPOSE.replace("router", "robber")
    payload = hashlib.sha256(compose.encode()).digest()

    def make(benches: Benches) -> Present:
        bench = benches.tdx
        log = [replace(event, payload=payload) if event.name == "compose-hash" else event for event in bench.event_log]
        if stripped:
            log = [replace(event, digest=b"") if event.imr == 3 else event for event in log]
        measurement = replace(bench.measurement, compose_hash=payload.hex())
        rules = replace(bench.rules(), tdx=bench.tdx(measurements=MeasurementSet(frozenset({measurement}))))
        return presenting(bench.evidence(event_log=log, app_compose=compose).document, rules, bench.context())

    return make


def _without_last(imr: int) -> Callable[[list[Event]], Sequence[Event]]:
    def change(log: list[Event]) -> Sequence[Event]:
        log.remove([event for event in log if event.imr == imr][-1])
        return log

    return change


class _Booted(VirtualTd):
    """A TD whose boot measured other runtime events: log, registers and quote all agree."""

    def measure(self, events: Sequence[Any]) -> None:
        self._events = [*(event for event in self._events if event.imr != 3), *events]


def _booted(change: Callable[[list[Event]], Sequence[Event]]) -> Callable[[Benches], Present]:
    """A whole boot that measured something else, under rules that allow its registers."""

    def make(benches: Benches) -> Present:
        good = benches.tdx
        td = _Booted(good.machine, COMPOSE.encode(), InstanceIdentity.random(), NOW)
        td.measure(change([event for event in replace(good, td=td).event_log if event.imr == 3]))
        bench = replace(good, td=td)
        return presenting(bench.evidence().document, bench.rules(), bench.context())

    return make


def _configured(
    config_id: Callable[[Bench], bytes], change: Callable[[list[Event]], Sequence[Event]] = lambda log: log
) -> Callable[[Benches], Present]:
    """A TD that its host launched with this configuration id, and that booted so."""

    def make(benches: Benches) -> Present:
        good = benches.tdx
        td = _Booted(good.machine, COMPOSE.encode(), InstanceIdentity.random(), NOW)
        td.measure(change([event for event in replace(good, td=td).event_log if event.imr == 3]))
        bench = replace(good, td=td)
        evidence = with_quote(
            bench, lambda report: make_quote(bench.machine.pki, report), mr_config_id=config_id(bench)
        )
        return presenting(evidence.document, bench.rules(), bench.context())

    return make


def configured_by_application(bench: Bench) -> bytes:
    """The id that a host with a KMS gives, which names the application and the KMS."""
    provider = jcs.loads_object(bench.machine.kms.provider.encode())
    compose_hash = bytes.fromhex(bench.measurement.compose_hash)
    return registers.mr_config_id_2(
        compose_hash, bench.td.identity.app_id, registers.KeyProvider.KMS, bytes.fromhex(provider["id"])
    )


launched_by_application = _configured(configured_by_application)


def _event(name: str, payload: bytes) -> Event:
    return Event(3, RUNTIME_EVENT_TYPE, eventlog.colon_digest(name, payload), name, payload)


def _rewritten(event: Event) -> Event:
    """Another payload under the digest that was measured."""
    return replace(event, payload=bytes(20)) if event.name == "app-id" else event


def _without(name: str) -> Callable[[list[Event]], Sequence[Event]]:
    return lambda log: [event for event in log if event.name != name]


def _twice(name: str) -> Callable[[list[Event]], Sequence[Event]]:
    return lambda log: [copy for event in log for copy in ([event, event] if event.name == name else [event])]


def _late(name: str) -> Callable[[list[Event]], Sequence[Event]]:
    return lambda log: [
        *(event for event in log if event.name != name),
        *(event for event in log if event.name == name),
    ]


def _paid(name: str, payload: bytes) -> Callable[[list[Event]], Sequence[Event]]:
    return lambda log: [_event(name, payload) if event.name == name else event for event in log]


def _measured(**changes: str) -> Callable[[Benches], Present]:
    def rules(bench: Bench) -> RoleRules:
        other = replace(bench.measurement, **changes)
        return replace(bench.rules(), tdx=bench.tdx(measurements=MeasurementSet(frozenset({other}))))

    return _rules(rules)


def _revoked(bench: Bench) -> RoleRules:
    """The measurement is allowed, and its app-compose revoked."""
    measurements = MeasurementSet(frozenset({bench.measurement}), frozenset({bench.measurement.compose_hash}))
    return replace(bench.rules(), tdx=bench.tdx(measurements=measurements))


def _lists(make: Callable[[Bench], DeviceLists]) -> Callable[[Benches], Present]:
    return _rules(lambda bench: replace(bench.rules(), devices=make(bench).rule()))


def _device(bench: Bench) -> frozenset[str]:
    return frozenset({bench.machine.device_id.hex()})


def _family(bench: Bench) -> frozenset[str]:
    return frozenset({bench.machine.pki.platform.fmspc.hex()})


def _unbound_gpu(claims: Callable[[str], dict[str, Any]], present: bool = True) -> Callable[[Benches], Present]:
    """GPU evidence and claims about it that do not fit; the quote binds the claims."""

    def make(benches: Benches) -> Present:
        bench = benches.tdx
        challenge = bench.issuer.challenge()
        gpu = good_gpu(benches, challenge)
        evidence = bench.evidence(claims=claims("00" * 32), challenge=challenge, gpu_evidence=gpu if present else None)
        return presenting(evidence.document, replace(bench.rules(), gpu=benches.gpu.rule), bench.context())

    return make


_IDENTITY = ("app-id", "compose-hash", "instance-id", "key-provider", "os-image-hash")
_MEMBERS = ("compose_hash", "app_id", "os_image_hash", "key_provider", "mrtd", "rtmr0", "rtmr1", "rtmr2")

ROWS = [
    # Step 2, before anything: does policy speak of the technology at all.
    Row(
        "TDX evidence where policy accepts none",
        2,
        "TEE_TYPE_NOT_ALLOWED",
        _rules(lambda bench: replace(bench.rules(), tdx=None)),
    ),
    # Step 3, composed rules.
    Row(
        "no rule about patch levels",
        3,
        "NOTHING_ALLOWED",
        _rules(lambda b: replace(b.rules(), tdx=b.tdx(tcb=AllOf(())))),
    ),
    Row(
        "no alternative about patch levels",
        3,
        "NOTHING_ALLOWED",
        _rules(lambda b: replace(b.rules(), tdx=b.tdx(tcb=AnyOf(())))),
    ),
    # Step 5: challenge, key and claims.
    Row("another verifier's challenge", 5, "NONCE_MISMATCH", _own_nonce),
    Row("another key asked for", 5, "SPKI_MISMATCH", lambda b: _context(spki=b.other.spki)(b)),
    Row("another key in the document", 5, "REPORT_DATA_MISMATCH", lambda b: _key_exchanged(b)),
    Row("quote of another answer", 5, "REPORT_DATA_MISMATCH", _replayed),
    Row("claims changed after the quote", 5, "REPORT_DATA_MISMATCH", _document(_claims_of_another)),
    Row(
        "unsigned challenge",
        5,
        "CHALLENGE_UNSIGNED",
        _challenge(lambda _: Challenge.unsigned("kms/1", "evidence", NOW)),
    ),
    Row(
        "challenge of another mesh", 5, "CHALLENGE_ISSUER_NOT_TRUSTED", _challenge(lambda b: b.other.issuer.challenge())
    ),
    Row(
        "challenge of an older CA's name, our certificate",
        5,
        "CHALLENGE_SIGNATURE_INVALID",
        _challenge(_foreign_signature),
    ),
    Row("challenge for another purpose", 5, "CHALLENGE_SIGNATURE_INVALID", _challenge_member("purpose", "release")),
    Row("challenge made younger", 5, "CHALLENGE_SIGNATURE_INVALID", _challenge_member("issued_at", NOW + 1)),
    Row("challenge too old", 5, "CHALLENGE_TOO_OLD", _challenge(lambda b: b.tdx.issuer.challenge(NOW - 301))),
    Row(
        "challenge from the future", 5, "CHALLENGE_FROM_FUTURE", _challenge(lambda b: b.tdx.issuer.challenge(NOW + 61))
    ),
    # Step 6: event log and registers.
    Row("rewritten compose-hash beside a matching app-compose", 6, "EVENT_DIGEST_MISMATCH", _forged(stripped=False)),
    Row("rewritten app-id", 6, "EVENT_DIGEST_MISMATCH", _logged(lambda log: [_rewritten(event) for event in log])),
    Row(
        "rewritten compose-hash beside a matching app-compose, digests stripped",
        6,
        "EVENT_LOG_DOES_NOT_REPLAY",
        _forged(stripped=True),
    ),
    *(
        Row(
            f"log without the last event of register {imr}", 6, "EVENT_LOG_DOES_NOT_REPLAY", _logged(_without_last(imr))
        )
        for imr in range(4)
    ),
    Row("log in another order", 6, "EVENT_LOG_DOES_NOT_REPLAY", _logged(lambda log: [*log[:-2], log[-1], log[-2]])),
    Row("event added to the log", 6, "EVENT_LOG_DOES_NOT_REPLAY", _logged(lambda log: [*log, _event("late", b"")])),
    Row("no log", 6, "EVENT_LOG_DOES_NOT_REPLAY", _logged(lambda log: [])),
    *(Row(f"boot without {name}", 6, "IDENTITY_EVENT_MISSING", _booted(_without(name))) for name in _IDENTITY),
    *(Row(f"boot with {name} twice", 6, "IDENTITY_EVENT_REPEATED", _booted(_twice(name))) for name in _IDENTITY),
    *(
        Row(f"boot with {name} after system-ready", 6, "IDENTITY_EVENT_LATE", _booted(_late(name)))
        for name in _IDENTITY
    ),
    Row("boot without system-ready", 6, "IDENTITY_EVENT_MISSING", _booted(_without("system-ready"))),
    Row("boot with system-ready twice", 6, "IDENTITY_EVENT_REPEATED", _booted(_twice("system-ready"))),
    *(
        Row(f"boot with an empty {name}", 6, "IDENTITY_EVENT_MALFORMED", _booted(_paid(name, b"")))
        for name in ("app-id", "key-provider")
    ),
    Row("boot with a short instance-id", 6, "IDENTITY_EVENT_MALFORMED", _booted(_paid("instance-id", bytes(19)))),
    Row(
        "launched for another app-compose",
        6,
        "CONFIG_ID_MISMATCH",
        _configured(lambda _: registers.mr_config_id_1(bytes(32))),
    ),
    Row(
        "launched for another application",
        6,
        "CONFIG_ID_MISMATCH",
        _configured(lambda b: configured_by_application(b)[:-16] + bytes([1] * 16)),
    ),
    Row(
        "launched for a whole document",
        6,
        "CONFIG_ID_NOT_UNDERSTOOD",
        _configured(lambda _: registers.mr_config_id_3("{}")),
    ),
    Row(
        "launched for an application of an unknown key provider",
        6,
        "CONFIG_ID_NOT_UNDERSTOOD",
        _configured(configured_by_application, _paid("key-provider", b'{"id":"","name":"somebody"}')),
    ),
    # Step 7.
    Row(
        "another app-compose text", 7, "COMPOSE_HASH_MISMATCH", _document(lambda v: v.update(app_compose=COMPOSE + " "))
    ),
    # Step 8.
    Row(
        "no measurement allowed",
        8,
        "MEASUREMENT_NOT_ALLOWED",
        _rules(lambda b: replace(b.rules(), tdx=b.tdx(measurements=MeasurementSet(frozenset())))),
    ),
    *(Row(f"another {name}", 8, "MEASUREMENT_NOT_ALLOWED", _measured(**{name: "00"})) for name in _MEMBERS),
    Row("application revoked", 8, "MEASUREMENT_REVOKED", _rules(_revoked)),
    # Step 9.
    Row("machine revoked", 9, "DEVICE_REVOKED", _lists(lambda b: DeviceLists(allowed=_device(b), revoked=_device(b)))),
    Row(
        "CPU family revoked",
        9,
        "CPU_FAMILY_REVOKED",
        _lists(lambda b: DeviceLists(allowed=_device(b), revoked_families=_family(b))),
    ),
    Row("machine not listed", 9, "DEVICE_NOT_LISTED", _lists(lambda _: DeviceLists(allowed=frozenset({"00" * 32})))),
    Row(
        "CPU family not listed",
        9,
        "CPU_FAMILY_NOT_LISTED",
        _lists(lambda _: DeviceLists(allowed_families=frozenset({"00" * 6}))),
    ),
    Row(
        "neither machine nor CPU family listed",
        9,
        "DEVICE_NOT_LISTED",
        _lists(lambda _: DeviceLists(allowed=frozenset({"00" * 32}), allowed_families=frozenset({"00" * 6}))),
    ),
    Row(
        "CPU family not listed, as a rule of its own",
        9,
        "CPU_FAMILY_NOT_LISTED",
        _rules(lambda b: replace(b.rules(), devices=FamilyListed(frozenset()))),
    ),
    # Step 10: is there GPU evidence, and does the quote bind it.
    Row("no GPU evidence", 10, "GPU_EVIDENCE_MISSING", _rules(lambda b: replace(b.rules(), gpu_required=True))),
    Row("GPU evidence outside the claims", 10, "GPU_EVIDENCE_NOT_BOUND", _unbound_gpu(lambda _: dict(CLAIMS))),
    Row(
        "other GPU evidence than the claims state",
        10,
        "GPU_EVIDENCE_NOT_BOUND",
        _unbound_gpu(lambda digest: {**CLAIMS, "gpu_evidence_sha256": digest}),
    ),
    Row(
        "claims of GPU evidence that is not there",
        10,
        "GPU_EVIDENCE_NOT_BOUND",
        _unbound_gpu(lambda digest: {**CLAIMS, "gpu_evidence_sha256": digest}, present=False),
    ),
    # Step 11: claims.
    Row("another role", 11, "ROLE_MISMATCH", _rules(lambda b: b.rules("kms"))),
    Row("no role", 11, "ROLE_MISMATCH", _claims({"log_key": "00" * 32}, role="router")),
    Row(
        "other weights",
        11,
        "MODEL_NOT_ALLOWED",
        _claims({**NODE_CLAIMS, "models": [{"id": _MODEL, "weights_sha256": "cd" * 32}]}),
    ),
    Row(
        "another model",
        11,
        "MODEL_NOT_ALLOWED",
        _claims({**NODE_CLAIMS, "models": [{"id": "other", "weights_sha256": WEIGHTS}]}),
    ),
    Row(
        "another model beside one that is allowed",
        11,
        "MODEL_NOT_ALLOWED",
        _claims({**NODE_CLAIMS, "models": [*NODE_CLAIMS["models"], {"id": "other", "weights_sha256": WEIGHTS}]}),
    ),
    Row("no list of models", 11, "CLAIMS_MALFORMED", _claims({**NODE_CLAIMS, "models": None})),
    Row("model without weights", 11, "CLAIMS_MALFORMED", _claims({**NODE_CLAIMS, "models": [{"id": _MODEL}]})),
    Row("a model twice", 11, "CLAIMS_MALFORMED", _claims({**NODE_CLAIMS, "models": NODE_CLAIMS["models"] * 2})),
    Row("model that is no object", 11, "CLAIMS_MALFORMED", _claims({**NODE_CLAIMS, "models": [_MODEL]})),
    Row(
        "weights that are no digest",
        11,
        "CLAIMS_MALFORMED",
        _claims({**NODE_CLAIMS, "models": [{"id": _MODEL, "weights_sha256": "abab"}]}),
    ),
]


def _key_exchanged(benches: Benches) -> Present:
    """A key that the verifier expects, in a document whose quote speaks for another."""
    document = edited(benches.tdx.evidence(), lambda value: value.update(spki=benches.other.spki.hex()))
    return presenting(document, benches.tdx.rules(), replace(benches.tdx.context(), spki=benches.other.spki))
