from __future__ import annotations

from dataclasses import replace

import pytest

from libs.tee.snp import judgement, verification
from libs.tee.snp import report as reports
from libs.tee.snp.judgement import TcbTooLow
from libs.tee.snp.report import PlatformFlag, PolicyFlag, Product, SnpReport, Tcb
from libs.tee.snp.rules import SnpMeasurement, SnpRule
from libs.tee.snp.verification import VerifiedSnpReport
from tests.fakes.snp_platform import DAY, NOW, chip, policy


def _verified(product: Product = Product.MILAN) -> VerifiedSnpReport:
    one = chip(product)
    return verification.verify(one.report(), one.endorsement(), [one.root], NOW)


def _report(**changes: int | bytes) -> SnpReport:
    return reports.parse(chip().report(None, **changes))


def _rule(tcb: Tcb | None = None, product: Product = Product.MILAN) -> SnpRule:
    return SnpRule(minimum_tcb={product: tcb or chip(product).tcb}, maximum_crl_age_seconds=20 * DAY)


@pytest.mark.parametrize("component", ["bootloader", "tee", "snp", "microcode", "fmc"])
def test_every_component_must_reach_the_minimum(component: str) -> None:
    tcb = chip(Product.TURIN).tcb
    minimum = replace(tcb, **{component: getattr(tcb, component) + 1})
    with pytest.raises(TcbTooLow):
        judgement.judge_tcb(_verified(Product.TURIN), _rule(minimum, Product.TURIN), NOW)


def test_more_than_the_minimum_is_accepted() -> None:
    assert judgement.judge_tcb(_verified(), _rule(Tcb(0, 0, 0, 0)), NOW) == NOW + 10 * DAY - 1


def test_turin_need_not_be_asked_for_an_fmc_level() -> None:
    tcb = replace(chip(Product.TURIN).tcb, fmc=None)
    assert judgement.judge_tcb(_verified(Product.TURIN), _rule(tcb, Product.TURIN), NOW) > NOW


def test_verdict_ends_with_the_crls_age() -> None:
    rule = replace(_rule(), maximum_crl_age_seconds=DAY)
    assert judgement.judge_tcb(_verified(), rule, NOW) == NOW
    with pytest.raises(judgement.CrlTooOld):
        judgement.judge_tcb(_verified(), rule, NOW + 1)


@pytest.mark.parametrize("flag", [PolicyFlag.DEBUG_ALLOWED, PolicyFlag.MIGRATION_AGENT_ALLOWED])
def test_no_rule_accepts_debugging_or_migration(flag: PolicyFlag) -> None:
    rule = replace(_rule(), required_platform=PlatformFlag(0), allow_smt=True, allow_cxl=True)
    judgement.judge_guest(_report(policy=policy()), rule)
    with pytest.raises((judgement.DebugGuest, judgement.MigrationAllowed)):
        judgement.judge_guest(_report(policy=policy(flag)), rule)


def test_rule_accepts_what_it_states() -> None:
    id_key, author_key = b"\x01" * 48, b"\x02" * 48
    report = _report(
        policy=policy(PolicyFlag.SMT_ALLOWED, PolicyFlag.CXL_ALLOWED),
        vmpl=1,
        key_info=1,
        id_key_digest=id_key,
        author_key_digest=author_key,
        guest_svn=5,
        report_id_ma=bytes(32),
    )
    rule = replace(
        _rule(),
        allow_smt=True,
        allow_cxl=True,
        minimum_abi=(1, 0x37),
        required_platform=PlatformFlag.ECC_ENABLED,
        vmpls=frozenset({0, 1}),
        id_keys=frozenset({id_key.hex()}),
        author_keys=frozenset({author_key.hex()}),
        minimum_guest_svn=5,
    )
    judgement.judge_guest(report, rule)


def test_every_required_platform_flag_counts() -> None:
    rule = replace(_rule(), required_platform=PlatformFlag.ECC_ENABLED | PlatformFlag.TSME_ENABLED)
    with pytest.raises(judgement.PlatformNotAllowed, match="TSME_ENABLED"):
        judgement.judge_guest(_report(), rule)


def test_newer_abi_outweighs_its_minor_number() -> None:
    judgement.judge_guest(_report(policy=policy(abi=0x0200)), replace(_rule(), minimum_abi=(1, 55)))


def test_measurement_is_the_launch_and_the_hosts_data() -> None:
    report = _report(family_id=b"\x0a" * 16, image_id=b"\x0b" * 16)
    measurement = judgement.measurement(report)
    assert measurement == SnpMeasurement("0d" * 32, "0c" * 48, "0a" * 16, "0b" * 16)
    assert measurement.to_json() == {
        "compose_hash": "0d" * 32,
        "launch_digest": "0c" * 48,
        "family_id": "0a" * 16,
        "image_id": "0b" * 16,
    }
