"""How many certificates go on record, and which of them may use the room that is kept for what must be heard."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from libs.errors import MeshError
from libs.identity.certificate import MeshCertificate, Subject, parse
from services.kms.ca import CertificateAuthority
from services.kms.certified import CERTIFICATES_PER_MINUTE, RESERVED_ROLES, Certified
from services.kms.decisions import Decisions
from tests.fakes.joined_mesh import Clock, KmsCore
from tests.fakes.running_kms import DecisionLog

MACHINE = "aa" * 16
DETAIL = {"evidence_sha256": "ab" * 32, "policy_version": 1}
KEY = ec.generate_private_key(ec.SECP256R1()).public_key()


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


@pytest.fixture
def log() -> DecisionLog:
    return DecisionLog()


@pytest.fixture
def certified(log: DecisionLog, clock: Clock) -> Certified:
    return Decisions(log, clock).certified


def certificate(ca: CertificateAuthority, role: str, instance: str = "1") -> MeshCertificate:
    subject = Subject(ca.trust_domain, role, instance, None if role == "operator" else bytes(32))
    return parse(ca.issue_svid(subject, KEY, 1000.0))


async def refusal(certified: Certified, wanted: MeshCertificate, device_id: str = MACHINE) -> str | None:
    try:
        await certified.record(wanted, device_id, DETAIL)
    except MeshError as error:
        return error.reason
    return None


async def test_a_name_has_so_many_a_minute_on_each_machine(kms: KmsCore, certified: Certified, clock: Clock) -> None:
    wanted = certificate(kms.ca, "node")
    said = [await refusal(certified, wanted) for _ in range(CERTIFICATES_PER_MINUTE + 1)]
    assert said == [None] * CERTIFICATES_PER_MINUTE + ["CERTIFICATES_TOO_MANY"]
    assert await refusal(certified, wanted, "bb" * 16) is None
    assert await refusal(certified, certificate(kms.ca, "node", "2")) is None
    clock.now = 60.0 / CERTIFICATES_PER_MINUTE
    assert [await refusal(certified, wanted) for _ in range(2)] == [None, "CERTIFICATES_TOO_MANY"]


@pytest.mark.parametrize("role", sorted(RESERVED_ROLES))
async def test_no_role_takes_all_of_the_reserve_under_ever_new_names(
    kms: KmsCore, certified: Certified, log: DecisionLog, clock: Clock, role: str
) -> None:
    log.crowded = True
    said = [await refusal(certified, certificate(kms.ca, role, str(n))) for n in range(CERTIFICATES_PER_MINUTE + 1)]
    assert said == [None] * CERTIFICATES_PER_MINUTE + ["OUTBOX_FULL"]
    assert len(log.outbox) == CERTIFICATES_PER_MINUTE
    other = "ledger" if role == "broker" else "broker"
    assert await refusal(certified, certificate(kms.ca, other)) is None
    log.crowded = False
    assert await refusal(certified, certificate(kms.ca, role, "last")) is None


async def test_a_refusal_for_want_of_room_is_no_certificate(
    kms: KmsCore, certified: Certified, log: DecisionLog
) -> None:
    log.full = True
    assert await refusal(certified, certificate(kms.ca, "ledger")) == "OUTBOX_FULL"
    assert log.outbox == []
