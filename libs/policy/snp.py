"""It is responsible for what a policy says about AMD SEV-SNP: least patch levels, launches, and measurements.

A policy without this member accepts no SEV-SNP evidence.
"""

from __future__ import annotations

import re
from types import MappingProxyType

from libs.policy.members import Members
from libs.tee.snp.report import PlatformFlag, Product, Tcb
from libs.tee.snp.rules import SnpMeasurement, SnpRule

_PRODUCT = re.compile("|".join(Product))
_FLAG = re.compile("|".join(flag.name for flag in PlatformFlag if flag.name))
_MOST_SVN = 255


def read_snp(members: Members) -> SnpRule:
    """Read the policy's member `snp`."""
    levels = members.object("minimum_tcb")
    minimum = {Product(name): _read_tcb(levels, Product(name)) for name in levels.names(_PRODUCT)}
    if not minimum:
        raise members.refuse("minimum_tcb", "must not be empty")
    required = PlatformFlag(0)
    for name in members.texts("required_platform", _FLAG, may_be_empty=True):
        required |= PlatformFlag[name]
    rule = SnpRule(
        minimum_tcb=MappingProxyType(minimum),
        maximum_crl_age_seconds=members.integer("maximum_crl_age_seconds", 1),
        minimum_abi=(
            members.integer("minimum_abi_major", 0, _MOST_SVN),
            members.integer("minimum_abi_minor", 0, _MOST_SVN),
        ),
        allow_smt=members.flag("allow_smt"),
        require_single_socket=members.flag("require_single_socket"),
        required_platform=required,
        id_keys=frozenset(members.hexadecimals("id_keys", 48, may_be_empty=True)),
        author_keys=frozenset(members.hexadecimals("author_keys", 48, may_be_empty=True)),
        minimum_guest_svn=members.integer("minimum_guest_svn", 0, 2**32 - 1),
    )
    members.end()
    return rule


def read_snp_measurement(members: Members) -> SnpMeasurement:
    """Read one entry of a role's `snp_measurements`."""
    measurement = SnpMeasurement(
        compose_hash=members.hexadecimal("compose_hash", 32),
        launch_digest=members.hexadecimal("launch_digest", 48),
        family_id=members.hexadecimal("family_id", 16),
        image_id=members.hexadecimal("image_id", 16),
    )
    members.end()
    return measurement


def _read_tcb(levels: Members, product: Product) -> Tcb:
    members = levels.object(product)
    tcb = Tcb(
        bootloader=members.integer("bootloader", 0, _MOST_SVN),
        tee=members.integer("tee", 0, _MOST_SVN),
        snp=members.integer("snp", 0, _MOST_SVN),
        microcode=members.integer("microcode", 0, _MOST_SVN),
        # The one component that the other products lack.
        fmc=members.integer("fmc", 0, _MOST_SVN) if product is Product.TURIN else None,
    )
    members.end()
    if not any((tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode, tcb.fmc)):
        raise levels.refuse(product, "must ask for something")
    return tcb
