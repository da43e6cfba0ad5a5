"""Responsible for judging a verified SEV-SNP report by policy's rule (steps 3 and 4), and for what step 8 compares."""

from __future__ import annotations

from libs.errors import Code, MeshError
from libs.tee.snp.report import PolicyFlag, SnpReport
from libs.tee.snp.rules import SnpMeasurement, SnpRule
from libs.tee.snp.verification import VerifiedSnpReport

_NO_MIGRATION_AGENT = (bytes(32), b"\xff" * 32)


class ProductNotAllowed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "SNP_PRODUCT_NOT_ALLOWED"


class TcbTooLow(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "SNP_TCB_TOO_LOW"


class CrlTooOld(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "SNP_CRL_TOO_OLD"


class DebugGuest(MeshError):
    """The guest may be debugged, so its host can read its memory."""

    code = Code.PERMISSION_DENIED
    reason = "SNP_DEBUG"


class MigrationAllowed(MeshError):
    """The guest may be given a migration agent, which could move it elsewhere."""

    code = Code.PERMISSION_DENIED
    reason = "SNP_MIGRATION_ALLOWED"


class MigrationAgentBound(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "SNP_MIGRATION_AGENT_BOUND"


class SmtNotAllowed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "SNP_SMT_NOT_ALLOWED"


class CxlNotAllowed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "SNP_CXL_NOT_ALLOWED"


class SingleSocketRequired(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "SNP_SINGLE_SOCKET_REQUIRED"


class AbiTooOld(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "SNP_ABI_TOO_OLD"


class PlatformNotAllowed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "SNP_PLATFORM_NOT_ALLOWED"


class VmplNotAllowed(MeshError):
    """The report was asked for from another privilege level of the guest, or by its host."""

    code = Code.PERMISSION_DENIED
    reason = "SNP_VMPL_NOT_ALLOWED"


class IdKeyNotAllowed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "SNP_ID_KEY_NOT_ALLOWED"


class AuthorKeyNotAllowed(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "SNP_AUTHOR_KEY_NOT_ALLOWED"


class GuestSvnTooLow(MeshError):
    code = Code.PERMISSION_DENIED
    reason = "SNP_GUEST_SVN_TOO_LOW"


def judge_tcb(verified: VerifiedSnpReport, rule: SnpRule, now: int) -> int:
    """Return until when (unix seconds) the platform's state satisfies the rule, or raise why it does not.

    All four patch levels must reach the minimum. The reported one alone is what the signature proves. The current one
    runs now. Behind the committed one the host can roll the firmware back at any time, with the guest still there.
    What ran at launch decided what the guest started from, and a later update does not undo it.
    """
    minimum = rule.minimum_tcb.get(verified.product)
    if minimum is None:
        raise ProductNotAllowed(f"policy does not list the product {verified.product}")
    for name in verified.tcbs.__slots__:
        if not getattr(verified.tcbs, name).reaches(minimum):
            raise TcbTooLow(f"the platform's {name} TCB is below policy's minimum: update the firmware")
    if now - verified.crl_issued_at > rule.maximum_crl_age_seconds:
        raise CrlTooOld("the CRL is older than policy accepts: fetch it again")
    return min(verified.valid_until, verified.crl_issued_at + rule.maximum_crl_age_seconds)


def judge_guest(report: SnpReport, rule: SnpRule) -> None:
    """Refuse a guest that its host can look into, move or steer, or that was launched otherwise than policy says."""
    _judge_policy(report, rule)
    if missing := rule.required_platform & ~report.platform:
        raise PlatformNotAllowed(f"the host does not run with {missing.name}")
    if report.vmpl not in rule.vmpls:
        raise VmplNotAllowed(f"the report was asked for at VMPL {report.vmpl:#x}")
    if any(report.id_key_digest) and report.id_key_digest.hex() not in rule.id_keys:
        raise IdKeyNotAllowed("policy does not list the key that signed the guest's ID block")
    if report.author_key_digest is not None and report.author_key_digest.hex() not in rule.author_keys:
        raise AuthorKeyNotAllowed("policy does not list the author key of the guest's ID block")
    if report.guest_svn < rule.minimum_guest_svn:
        raise GuestSvnTooLow(f"the guest's SVN is {report.guest_svn}, policy asks for {rule.minimum_guest_svn}")


def _judge_policy(report: SnpReport, rule: SnpRule) -> None:
    if PolicyFlag.DEBUG_ALLOWED in report.policy:
        raise DebugGuest("the guest may be debugged")
    if PolicyFlag.MIGRATION_AGENT_ALLOWED in report.policy:
        raise MigrationAllowed("the guest may be given a migration agent")
    if report.report_id_ma not in _NO_MIGRATION_AGENT:
        raise MigrationAgentBound("the guest has a migration agent")
    # The guest's policy is judged and not the host's setting: without leave the firmware runs it on no such host.
    if PolicyFlag.SMT_ALLOWED in report.policy and not rule.allow_smt:
        raise SmtNotAllowed("the guest may share its cores with threads of others")
    if PolicyFlag.CXL_ALLOWED in report.policy and not rule.allow_cxl:
        raise CxlNotAllowed("the guest's memory may lie behind CXL")
    if rule.require_single_socket and PolicyFlag.SINGLE_SOCKET_REQUIRED not in report.policy:
        raise SingleSocketRequired("the guest may run on several sockets")
    if report.minimum_abi < rule.minimum_abi:
        raise AbiTooOld("the guest may run on firmware with an older ABI than policy accepts")


def measurement(report: SnpReport) -> SnpMeasurement:
    """Return what policy's allow list is compared with (step 8)."""
    return SnpMeasurement(
        compose_hash=report.host_data.hex(),
        launch_digest=report.measurement.hex(),
        family_id=report.family_id.hex(),
        image_id=report.image_id.hex(),
    )
