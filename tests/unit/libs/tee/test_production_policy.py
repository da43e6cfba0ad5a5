"""Under a policy that names only what vendors publish, nothing makes evidence of the software TEE pass.

The published root is no part of this repository, so what needs it is a conformance test. What the code reads of its
surroundings is looked at always.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from libs.errors import MeshError
from libs.policy.document import Policy, PolicyMalformed, read
from libs.tee.appraisal import AppraisalContext, SignedBy, appraise
from libs.tee.evidence import Evidence
from libs.tee.role import RoleRules
from libs.tee.steps import Record
from services.attestation.config import Config
from services.devtee.nras import ISSUER, TokenShape
from tests.conformance.test_gpu_token_keys import INTERMEDIATE as NVIDIA_AUTHORITY
from tests.fakes.hardware_members import own_gpus, snp_member
from tests.fakes.policy_draft import gpu_member, policy_draft
from tests.fakes.snp_platform import chip
from tests.mutation.run import site_mutants
from tests.mutation.sites import sites, sources
from tests.mutation.trial import ACCEPTED, outcome
from tests.unit.libs.tee.bad_evidence.row import SnpCase, presenting
from tests.unit.libs.tee.bench import CLAIMS, NOW, Bench

ROOT = Path(__file__).parents[4]
FIXTURES = os.environ.get("TEEMESH_FIXTURES")
REASON = "VENDOR_ROOT_NOT_TRUSTED"

# Every place that reads the environment, and which variable. None of them is in what judges evidence.
ENVIRONMENT = {
    ("libs/process/notify.py", "os.environ.get('NOTIFY_SOCKET', '')"),
    ("libs/process/supervisor.py", "os.environ"),
    ("libs/rpc/hardening.py", "os.environ.get(_VARIABLE)"),
    ("libs/rpc/hardening.py", "os.environ[_VARIABLE]"),
    # How much gRPC's core writes to standard error.
    ("libs/rpc/hardening.py", "os.environ.setdefault(_VERBOSITY, 'ERROR')"),
    ("services/node/embedded.py", "os.environ.pop(arguments.key_variable)"),
    ("services/node/environment.py", "os.environ"),
    ("services/node/environment.py", "os.environ[name]"),
}
_VARIABLES = (
    # What the list above reads, by name; the engine's key has a name of the node's choice.
    "NOTIFY_SOCKET",
    "GRPC_SSL_CIPHER_SUITES",
    "GRPC_VERBOSITY",
    "TEEMESH_ENGINE_API_KEY",
    # What somebody would try.
    "TEEMESH_INSECURE",
    "TEEMESH_DEVELOPMENT",
    "DSTACK_SIMULATOR_ENDPOINT",
    "PYTHONOPTIMIZE",
)
_TEXTS = ("1", "true", "simulator", "insecure")
# Where the process that judges writes the root of its software TEE, which settings and variables then name.
_DEVELOPMENT = "development.der"
_VENDORS_ISSUER = "https://nras.attestation.nvidia.com"


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench.create()


@pytest.fixture(scope="module")
def evidence(bench: Bench) -> Evidence:
    return bench.evidence()


def _policy(bench: Bench, root: bytes, *, development: bool) -> Policy:
    """A policy that allows exactly the bench's TD, under this root alone."""
    return _read(bench, [_root("tdx", root, development=development)])


def _root(tee_type: str, certificate: bytes, *, development: bool) -> dict[str, Any]:
    name = f"{'development' if development else 'published'} {tee_type}"
    return {"name": name, "tee_type": tee_type, "certificate": certificate.hex(), "development": development}


def _read(bench: Bench, vendor_roots: Sequence[Mapping[str, Any]], now: int = NOW, **members: Any) -> Policy:
    operators = [Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()]
    draft = policy_draft(
        "mesh.example.org",
        operators,
        b"",
        {"router": bench.measurement},
        vendor_roots=vendor_roots,
        not_before=now - 60,
        not_after=now + 86400,
    )
    router = {**draft["roles"]["router"], **members.pop("router", {})}
    return read({**draft, "roles": {"router": router}, **members})


def _context(bench: Bench, policy: Policy, now: int = NOW) -> AppraisalContext:
    challenge = SignedBy(bench.issuer.spki, policy.challenge_max_age_seconds)
    return AppraisalContext(now, bench.spki, challenge, policy.version)


def _refusal(evidence: Evidence, rules: RoleRules, context: AppraisalContext) -> tuple[str, int]:
    """The reason, and the number of the step that gave it."""
    record = Record()
    with pytest.raises(MeshError) as refusal:
        appraise(evidence, rules, context, record)
    return refusal.value.reason, record.steps[-1].number


@pytest.fixture(scope="module")
def intel_root() -> bytes:
    return (Path(FIXTURES or "") / "quotes" / "dcap-qvl" / "intel_sgx_root_ca.der").read_bytes()


@pytest.fixture(scope="module")
def amd_root() -> bytes:
    """AMD's root of the product Milan, behind the certificate that it issued."""
    chain = (Path(FIXTURES or "") / "quotes" / "snp" / "milan-chain.pem").read_bytes()
    _, root = x509.load_pem_x509_certificates(chain)
    return root.public_bytes(Encoding.DER)


@pytest.fixture(scope="module")
def production(bench: Bench, intel_root: bytes) -> Policy:
    return _policy(bench, intel_root, development=False)


@pytest.fixture(scope="module")
def guest() -> SnpCase:
    return SnpCase(chip(), Bench.create())


def _snp_policy(guest: SnpCase, vendor_roots: Sequence[Mapping[str, Any]]) -> Policy:
    """A policy that allows exactly this guest."""
    router = {"snp_measurements": [guest.measurement.to_json()]}
    return _read(guest.bench, vendor_roots, guest.now, snp=snp_member(guest.chip), router=router)


def _gpu_policy(bench: Bench, vendor_roots: Sequence[Mapping[str, Any]], issuer: Mapping[str, Any]) -> Policy:
    """A policy that requires a GPU for which this issuer vouches."""
    member = {**gpu_member("", b""), "issuers": [issuer], "reports_required": False}
    return _read(bench, vendor_roots, gpu=member, router={"gpu_required": True})


def _development_gpu(bench: Bench) -> Policy:
    gpus = bench.machine.gpus
    roots = [
        _root("tdx", bench.machine.vendor_root, development=True),
        _root("nvidia-gpu", gpus.device_root, development=True),
    ]
    issuer = {"issuer": ISSUER, "development": True, "roots": [gpus.nras.authority.root.der.hex()]}
    return _gpu_policy(bench, roots, issuer)


def _with_gpu(bench: Bench, shape: TokenShape) -> Evidence:
    """Evidence of a TD with a development GPU, whose tokens say what they like about who issued them."""
    challenge = bench.issuer.challenge()
    gpu = own_gpus(bench.machine, challenge, bench.spki, NOW, shape)
    claims = {**CLAIMS, "gpu_evidence_sha256": gpu.digest.hex()}
    return bench.evidence(claims=claims, challenge=challenge, gpu_evidence=gpu)


def test_the_same_gpu_passes_where_policy_names_its_issuer(bench: Bench) -> None:
    policy = _development_gpu(bench)
    assert appraise(_with_gpu(bench, TokenShape()), policy.rules("router"), _context(bench, policy)).gpu is not None


def test_the_same_guest_passes_where_policy_names_its_root(guest: SnpCase) -> None:
    policy = _snp_policy(guest, [_root("sev-snp", guest.chip.root, development=True)])
    context = _context(guest.bench, policy, guest.now)
    assert appraise(guest.evidence(), policy.rules("router"), context).role == "router"


def test_the_same_evidence_passes_where_policy_names_its_root(bench: Bench, evidence: Evidence) -> None:
    policy = _policy(bench, bench.machine.vendor_root, development=True)
    assert appraise(evidence, policy.rules("router"), _context(bench, policy)).role == "router"


def test_a_development_root_cannot_be_called_anything_else(bench: Bench) -> None:
    with pytest.raises(PolicyMalformed):
        _policy(bench, bench.machine.vendor_root, development=False)


def test_nothing_that_judges_reads_the_environment() -> None:
    found = {place for folder in ("libs", "services") for place in _environment(ROOT / folder)}
    assert found == ENVIRONMENT
    judging = ("libs/tee/", "libs/policy/", "libs/audit/", "services/attestation/")
    assert [path for path, _ in found if path.startswith(judging)] == []


def _environment(folder: Path) -> Iterator[tuple[str, str]]:
    """Every expression that reads the environment, as far out as it still is one."""
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text())
        parents = {child: parent for parent in ast.walk(tree) for child in ast.iter_child_nodes(parent)}
        for node in ast.walk(tree):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            imported = isinstance(node, ast.ImportFrom) and node.module == "os"
            if name in {"environ", "environb", "getenv", "getenvb", "putenv"}:
                yield str(path.relative_to(ROOT)), ast.unparse(_whole(node, parents))
            elif imported and isinstance(node, ast.ImportFrom):
                yield from ((str(path.relative_to(ROOT)), each.name) for each in node.names if "env" in each.name)


def _whole(node: ast.AST, parents: Mapping[ast.AST, ast.AST]) -> ast.AST:
    while isinstance(parents[node], ast.Attribute | ast.Subscript | ast.Call) and _reads(parents[node], node):
        node = parents[node]
    return node


def _reads(outer: ast.AST, inner: ast.AST) -> bool:
    """Whether the outer expression is a call of, or a look-up in, the inner one."""
    return inner in (getattr(outer, "value", None), getattr(outer, "func", None))


@pytest.mark.conformance
@pytest.mark.skipif(FIXTURES is None, reason="TEEMESH_FIXTURES names no folder of fixtures")
class TestUnderTheProductionPolicy:
    def test_development_evidence_fails_at_its_vendor_root(
        self, bench: Bench, evidence: Evidence, production: Policy
    ) -> None:
        assert production.development_roots == ()
        assert _refusal(evidence, production.rules("router"), _context(bench, production)) == (REASON, 2)

    @pytest.mark.parametrize(
        ("issuer", "reason"),
        [(ISSUER, "GPU_TOKEN_ISSUER_NOT_TRUSTED"), (_VENDORS_ISSUER, "GPU_TOKEN_KEY_NOT_TRUSTED")],
    )
    def test_a_development_gpu_fails_beside_any_td(
        self, bench: Bench, intel_root: bytes, issuer: str, reason: str
    ) -> None:
        """Whether its tokens name their own issuer or the vendor's, and even if the TD were a real one."""
        vendor = {"issuer": _VENDORS_ISSUER, "development": False, "roots": [NVIDIA_AUTHORITY.hex()]}
        policy = _gpu_policy(bench, [_root("tdx", intel_root, development=False)], vendor)
        rules = replace(policy.rules("router"), tdx=_development_gpu(bench).rules("router").tdx)
        evidence = _with_gpu(bench, TokenShape(issuer=issuer))
        assert _refusal(evidence, policy.rules("router"), _context(bench, policy)) == (REASON, 2)
        assert _refusal(evidence, rules, _context(bench, policy)) == (reason, 10)

    def test_a_development_guest_of_the_other_technology_fails_at_its_vendor_root(
        self, guest: SnpCase, intel_root: bytes, amd_root: bytes
    ) -> None:
        roots = [_root("tdx", intel_root, development=False), _root("sev-snp", amd_root, development=False)]
        policy = _snp_policy(guest, roots)
        assert policy.development_roots == ()
        context = _context(guest.bench, policy, guest.now)
        assert _refusal(guest.evidence(), policy.rules("router"), context) == (REASON, 2)

    def test_no_other_check_keeps_it_out(self, bench: Bench, evidence: Evidence, production: Policy) -> None:
        """Whichever single check is taken away, the vendor's root refuses; without that one, nothing is accepted."""
        present = presenting(evidence.document, production.rules("router"), _context(bench, production))
        every = sources()
        fates = {}
        for mutant in site_mutants(sites(list(every.values())), every, ()):
            with mutant.apply():
                fates[mutant.name] = outcome(present)
        assert len(fates) > 200
        assert [name for name, fate in fates.items() if fate.startswith(ACCEPTED)] == []
        others = {name: fate for name, fate in fates.items() if fate != REASON}
        assert [name for name in others if "VendorRootNotTrusted" not in name] == []

    def test_no_setting_of_the_service_lets_it_in(self, intel_root: bytes, tmp_path: Path) -> None:
        configs = _hostile_configs(tmp_path)
        outcomes = dict(zip(configs, _run(tmp_path, intel_root, configs.values(), {}), strict=True))
        assert outcomes["as it is"] == REASON
        idle = {name for name, fate in outcomes.items() if fate.startswith("does not start")}
        assert {fate for name, fate in outcomes.items() if name not in idle} == {REASON}
        # It does not even start with fields that are none, with too little room or time, in a folder that is a file, or
        # without any KMS.
        assert {name.partition(" = ")[0] for name in idle} == {
            "insecure",
            "member.simulator",
            "member.vendor_root",
            "member.kms",
            "member.kms_bootstrap",
            "member.state_dir",
            "sweep_seconds",
            "archive_bytes",
        }
        assert len(outcomes) - len(idle) > 60

    @pytest.mark.parametrize(
        ("variables", "value"),
        [
            *((_VARIABLES, value) for value in (*_TEXTS, "the development root")),
            *(((variable,), "1") for variable in _VARIABLES),
        ],
        ids=lambda given: given if isinstance(given, str) else "all" if len(given) > 1 else given[0],
    )
    def test_no_variable_of_the_environment_lets_it_in(
        self, intel_root: bytes, tmp_path: Path, variables: tuple[str, ...], value: str
    ) -> None:
        text = str(tmp_path / _DEVELOPMENT) if value == "the development root" else value
        # The interpreter itself wants a number there.
        environment = {name: "2" if name == "PYTHONOPTIMIZE" else text for name in variables}
        plain = _write(tmp_path / "plain.toml", _plain(tmp_path))
        assert _run(tmp_path, intel_root, [plain], environment) == [REASON]


def _run(folder: Path, intel_root: bytes, configs: typing.Iterable[Path], environment: Mapping[str, str]) -> list[str]:
    """Have it appraised in a process of its own, once for each config, and return what it says of each."""
    published = folder / "published.der"
    published.write_bytes(intel_root)
    module = "tests.unit.libs.tee.bad_evidence.appraise_alone"
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, [published, folder / _DEVELOPMENT, *configs])],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    under_development, *outcomes = done.stdout.splitlines()
    # What is wired there does accept: it is the root that the policy names.
    assert under_development == ACCEPTED
    return outcomes


def _plain(folder: Path) -> dict[str, Any]:
    """A value for every field that the service must be told."""
    return _table(Config, folder)


def _table(kind: Any, folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind).items():
        if is_dataclass(hint):
            values[name] = _table(hint, folder)
        elif hint is Path:
            values[name] = str(folder / name)
        elif hint is str:
            values[name] = "127.0.0.1:1"
        elif hint == tuple[str, ...]:
            values[name] = ["127.0.0.1:1"]
    return values


def _hostile_configs(folder: Path) -> dict[str, Path]:
    """One config for each field and hostile value, by their names, and what no config may hold."""
    root = folder / _DEVELOPMENT
    written = {"as it is": _plain(folder)}
    for field, hint in _every_field(Config):
        for value in _hostile(hint, str(root)):
            written[f"{field} = {value!r}"] = _with(_plain(folder), field, value)
    for field in ("insecure", "member.simulator", "member.vendor_root"):
        written[field] = _with(_plain(folder), field, True)
    return {name: _write(folder / f"{number}.toml", table) for number, (name, table) in enumerate(written.items())}


def _every_field(kind: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(kind)
    for field in fields(kind):
        if is_dataclass(hints[field.name]):
            yield from _every_field(hints[field.name], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", hints[field.name]


def _hostile(hint: Any, root: str) -> list[Any]:
    if typing.get_origin(hint) is tuple:
        return [[], *([each] for each in _hostile(typing.get_args(hint)[0], root))]
    kinds = typing.get_args(hint) or (hint,)
    values: list[Any] = []
    if str in kinds or Path in kinds:
        values += [*_TEXTS, root]
    if int in kinds or float in kinds:
        values += [0, 1, 2**31]
    if bool in kinds:
        values += [True, False]
    return values


def _with(table: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    *path, last = field.split(".")
    inner = table
    for name in path:
        inner = inner[name]
    inner[last] = value
    return table


def _write(path: Path, table: Mapping[str, Any]) -> Path:
    lines = [f"{name} = {json.dumps(value)}" for name, value in table.items() if not isinstance(value, dict)]
    for name, inner in table.items():
        if isinstance(inner, dict):
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in inner.items())]
    path.write_text("\n".join(lines) + "\n")
    return path
