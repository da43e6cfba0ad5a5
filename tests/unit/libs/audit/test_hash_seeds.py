"""A record is the same bytes whatever order sets have in the process that judges again."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from libs.audit.repetition import examine
from libs.policy.document import Policy, read
from libs.tee.appraisal import SignedBy
from libs.tee.archived import Accepted, Bundle, Question, Refused
from libs.tee.evidence import Evidence
from services.devtee.collateral import CollateralShape
from services.devtee.nras import ISSUER
from tests.fakes import snp_platform
from tests.fakes.hardware_members import own_gpus, snp_member
from tests.fakes.policy_draft import gpu_member, gpu_root, policy_draft
from tests.unit.libs.tee.bad_evidence.row import SnpCase
from tests.unit.libs.tee.bench import DAY, NOW, Bench

_ROOT = Path(__file__).parents[4]
_ADVISORIES = tuple(f"INTEL-SA-0{number}" for number in (1103, 837, 960, 828, 614))
_WEIGHTS = {"smollm2-135m": "ab" * 32, "qwen3-0.6b": "cd" * 32}
_SEEDS = ("0", "1", "2", "3")
_REPEAT = """
import sys
from pathlib import Path

from libs.audit.repetition import repeat

sys.stdout.buffer.write(repeat(Path(sys.argv[1]).read_bytes()))
"""

Made = tuple[Evidence, Policy, Question]


def _read(bench: Bench, now: int = NOW, **members: Any) -> Policy:
    operators = [Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()]
    roles = {"node": bench.measurement, "router": bench.measurement}
    dates = {"not_before": now - DAY, "not_after": now + DAY}
    return read(policy_draft("mesh.test", operators, bench.machine.vendor_root, roles, **dates, **members))


def _question(bench: Bench, role: str, now: int = NOW) -> Question:
    return Question(role, now, bench.spki, SignedBy(bench.issuer.spki, 300))


def _tcb(*refused: str) -> Mapping[str, Any]:
    return {
        "statuses": ["OutOfDate", "SWHardeningNeeded", "UpToDate"],
        "refused_advisories": list(refused),
        "grace_seconds": DAY,
        "minimum_evaluation_number": 0,
        "maximum_collateral_age_seconds": DAY,
    }


def _node(refused: tuple[str, ...] = ()) -> Made:
    """A node with five advisories, a GPU, and two models of the four that policy knows."""
    bench = Bench.create()
    gpus = bench.machine.gpus
    challenge = bench.issuer.challenge()
    gpu = own_gpus(bench.machine, challenge, bench.spki, NOW)
    claims = {
        "role": "node",
        "engine": "vllm",
        "engine_args_sha256": "00" * 32,
        "models": [{"id": name, "weights_sha256": weights} for name, weights in _WEIGHTS.items()],
        "receipt_key": "00" * 32,
        "gpu_evidence_sha256": gpu.digest.hex(),
    }
    shape = CollateralShape(NOW, tcb_status="SWHardeningNeeded", advisories=_ADVISORIES)
    evidence = bench.evidence(claims=claims, challenge=challenge, shape=shape, gpu_evidence=gpu)
    root = {"name": "tdx", "tee_type": "tdx", "certificate": bench.machine.vendor_root.hex(), "development": True}
    policy = _read(
        bench,
        vendor_roots=[root, gpu_root(gpus.device_root)],
        tcb=_tcb(*refused),
        gpu=gpu_member(ISSUER, gpus.nras.authority.root.der),
        models={name: [weights, "ef" * 32] for name, weights in _WEIGHTS.items()},
    )
    return evidence, policy, _question(bench, "node")


def _guest() -> Made:
    """An SEV-SNP guest."""
    one = SnpCase(snp_platform.chip(), Bench.create())
    role = {
        "measurements": [one.bench.measurement.to_json()],
        "snp_measurements": [one.measurement.to_json()],
        "gpu_required": False,
    }
    root = {"name": "snp", "tee_type": "sev-snp", "certificate": one.chip.root.hex(), "development": True}
    operators = [Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()]
    draft = policy_draft(
        "mesh.test",
        operators,
        b"",
        {},
        vendor_roots=[root],
        not_before=one.now - DAY,
        not_after=one.now + DAY,
        snp=snp_member(one.chip),
    )
    policy = read({**draft, "roles": {"router": role}})
    return one.evidence(), policy, _question(one.bench, "router", one.now)


def _refused() -> Made:
    """The node again, where policy refuses three of its advisories."""
    return _node(refused=tuple(sorted(_ADVISORIES)[1:4]))


@pytest.mark.parametrize(
    ("make", "reason"),
    [(_node, None), (_guest, None), (_refused, "TCB_ADVISORY_REFUSED")],
    ids=["node", "guest", "refused"],
)
def test_a_record_repeats_under_every_hash_seed(make: Callable[[], Made], reason: str | None, tmp_path: Path) -> None:
    evidence, policy, question = make()
    record = examine(evidence.document, policy, question).record
    if reason is None:
        assert isinstance(record.outcome, Accepted)
    else:
        assert isinstance(record.outcome, Refused)
        assert record.outcome.reason == reason
    bundle = tmp_path / "bundle"
    bundle.write_bytes(Bundle.of(record, evidence.document, policy.document).encode())
    said = {hashlib.sha256(_repeated(bundle, seed)).digest() for seed in _SEEDS}
    assert said == {hashlib.sha256(record.encode()).digest()}


def _repeated(bundle: Path, seed: str) -> bytes:
    done = subprocess.run(
        [sys.executable, "-c", _REPEAT, str(bundle)],
        cwd=_ROOT,
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        check=True,
    )
    return done.stdout


def test_the_seeds_order_sets_differently() -> None:
    orders = {
        subprocess.run(
            [sys.executable, "-c", f"print(*{{*{_ADVISORIES!r}}})"],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in _SEEDS
    }
    assert len(orders) == len(_SEEDS)
