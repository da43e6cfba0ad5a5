"""It is responsible for `teemesh policy`: draft, sign, inspect and publish the mesh policy, and revoke.

compose      render a service's app-compose, the measured file to deploy
init         draft a policy from composes, reference values, keys and models; nobody has signed it yet
sign         add one operator's signature
show         say in words what a policy allows, who signed it, and whether it holds now
diff         say what a version allows that another did not, and whether it may follow it
explain      say whether evidence would be admitted to a role, and which rule decides
replay       decide every admission in the log again, as of when it was made
publish      send it to the KMS, which puts it in force
revoke       withdraw something at once, as one operator alone
revocations  list what was revoked
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from libs.policy.compose import Anchors, compose_hash, read_anchors
from libs.policy.signatures import parse_signed, verify_own
from libs.policy.vocabulary import EVIDENCE_ROLES
from libs.tee.tcb import TcbRule
from services.cli.mesh.operators import load_key, read_public_key, read_public_keys
from services.cli.mesh.options import PUBLISHING_SECONDS, add_mesh_options
from services.cli.policy.composes import render_compose
from services.cli.policy.diff import add_diff, compare_signed, print_comparison
from services.cli.policy.draft import (
    EVIDENCE_SECONDS,
    LIFETIME_SECONDS,
    STRICT_TCB,
    draft_policy,
    read_signed,
    sign_policy,
    unsigned,
)
from services.cli.policy.explain import add_explain
from services.cli.policy.publish import publish_policy
from services.cli.policy.reference import DeployedCompose, read_reference
from services.cli.policy.replay import add_replay
from services.cli.policy.report import assess, print_report
from services.cli.policy.revoke import add_revocations, add_revoke
from services.cli.terminal.inputs import InputUnreadable, read_input, refuse_existing, write_output
from services.cli.terminal.verdicts import ACCEPTED, REFUSED, usable

_DAY = 86400


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `teemesh policy`."""
    parser = subparsers.add_parser("policy", help="draft, sign, inspect and publish the mesh policy; revoke")
    commands = parser.add_subparsers(dest="policy_command", required=True)
    _add_compose(commands.add_parser("compose", help="render a service's measured app-compose"))
    _add_init(commands.add_parser("init", help="draft a policy for the operators to sign"))
    _add_sign(commands.add_parser("sign", help="add one operator's signature"))
    _add_show(commands.add_parser("show", help="say what a policy allows and who signed it"))
    add_diff(commands.add_parser("diff", help="say what a version allows that another did not"))
    add_explain(commands.add_parser("explain", help="say whether evidence would be admitted, and by which rule"))
    add_replay(commands.add_parser("replay", help="decide every admission in the log again, as of when it was made"))
    _add_publish(commands.add_parser("publish", help="put a signed policy in force"))
    add_revoke(commands.add_parser("revoke", help="withdraw something at once, as one operator alone"))
    add_revocations(commands.add_parser("revocations", help="list what was revoked"))


def _add_operators(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--operator-key",
        action="append",
        required=True,
        metavar="KEY",
        help="an operator's public key: 64 hex digits or a PEM file; once per operator",
    )
    parser.add_argument("--threshold", type=int, required=True, help="how many operators must sign")
    parser.add_argument("--trust-domain", required=True, help="the mesh's name, for example mesh.example.org")


def _add_compose(parser: argparse.ArgumentParser) -> None:
    _add_operators(parser)
    parser.add_argument("--role", required=True, choices=sorted(EVIDENCE_ROLES))
    parser.add_argument("--image-digest", required=True, help="sha256:... of the image manifest")
    parser.add_argument("--template", type=Path, help="default: the template that ships with teemesh")
    parser.add_argument(
        "--dstack-kms-root",
        type=_octets,
        metavar="HEX",
        help="for role kms: the compressed secp256k1 key of the dstack KMS whose keys may seal the mesh's root",
    )
    parser.add_argument("--out", type=Path, required=True, help="the file to deploy; must not exist")
    parser.set_defaults(run=_run_compose)


def _add_init(parser: argparse.ArgumentParser) -> None:
    _add_operators(parser)
    parser.add_argument("--tenant-admin-key", required=True, metavar="KEY", help="64 hex digits or a PEM file")
    parser.add_argument(
        "--reference", type=Path, action="append", required=True, help="reference.json of a platform; once per platform"
    )
    parser.add_argument(
        "--compose", type=Path, action="append", required=True, help="a rendered app-compose; once per service"
    )
    parser.add_argument(
        "--app-id", action="append", default=[], metavar="COMPOSE=HEX", help="an app id that was assigned to a compose"
    )
    parser.add_argument(
        "--model", action="append", default=[], metavar="ID=SHA256", help="weights that may serve a model"
    )
    parser.add_argument(
        "--key-release",
        action="append",
        default=[],
        metavar="NAME=ROLE[:ALGORITHM]",
        help="a key, or all below NAME/*, that a role may hold; default: aes-256. The draft takes finer rules",
    )
    parser.add_argument("--gpu-role", action="append", default=[], choices=sorted(EVIDENCE_ROLES))
    parser.add_argument("--allow-device", action="append", default=[], metavar="DEVICE_ID", help="default: any machine")
    parser.add_argument("--revoke-device", action="append", default=[], metavar="DEVICE_ID")
    parser.add_argument("--tcb-status", action="append", metavar="STATUS", help="default: UpToDate")
    parser.add_argument("--refuse-advisory", action="append", default=[], metavar="INTEL-SA-...")
    parser.add_argument("--tcb-grace-days", type=int, default=0)
    parser.add_argument("--minimum-tcb-evaluation", type=int, default=STRICT_TCB.minimum_evaluation_number)
    parser.add_argument(
        "--collateral-max-age-days", type=int, default=STRICT_TCB.maximum_collateral_age_seconds // _DAY
    )
    parser.add_argument(
        "--retention-months",
        type=int,
        metavar="N",
        help="keep tenants' entries for so long; default: as before",
    )
    parser.add_argument("--challenge-max-age-seconds", type=int, default=EVIDENCE_SECONDS)
    parser.add_argument("--evidence-max-age-seconds", type=int, default=EVIDENCE_SECONDS)
    parser.add_argument("--lifetime-days", type=int, default=LIFETIME_SECONDS // _DAY)
    parser.add_argument(
        "--lift-revocation", action="append", default=[], metavar="ID", help="besides those that the previous one lifts"
    )
    parser.add_argument("--previous", type=Path, help="the signed policy that this one follows")
    parser.add_argument("--out", type=Path, required=True, help="the draft; must not exist")
    parser.set_defaults(run=_run_init)


def _add_sign(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", type=Path, help="the draft, or what others signed already; it is replaced")
    parser.add_argument("--key", type=Path, required=True, help="the operator's key file")
    parser.add_argument("--previous", type=Path, help="the policy before: its operators may sign; shows what changes")
    parser.set_defaults(run=_run_sign)


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", type=Path)
    parser.add_argument(
        "--compose", type=Path, help="judge the signatures by the operators that this app-compose is measured with"
    )
    parser.set_defaults(run=lambda args: usable(_run_show, args))


def _add_publish(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", type=Path)
    add_mesh_options(parser, PUBLISHING_SECONDS)
    parser.set_defaults(run=_run_publish)


def _run_compose(args: argparse.Namespace) -> int:
    refuse_existing(args.out)
    anchors = Anchors(
        args.role,
        args.trust_domain,
        read_public_keys(args.operator_key),
        args.threshold,
        args.dstack_kms_root,
    )
    text = render_compose(anchors, args.image_digest, read_input(args.template) if args.template else None)
    write_output(args.out, text)
    print(f"{args.out}: compose hash {compose_hash(text)}")
    return 0


def _run_init(args: argparse.Namespace) -> int:
    refuse_existing(args.out)
    app_ids = dict(_pairs(args.app_id, "--app-id"))
    if unknown := app_ids.keys() - {str(path) for path in args.compose}:
        raise InputUnreadable(f"--app-id names {min(unknown)}, which is not among --compose")
    models: dict[str, list[str]] = {}
    for model, digest in _pairs(args.model, "--model"):
        models.setdefault(model, []).append(digest)
    previous = read_signed(args.previous).policy if args.previous else None
    draft = draft_policy(
        trust_domain=args.trust_domain,
        operator_keys=read_public_keys(args.operator_key),
        threshold=args.threshold,
        tenant_admin_key=read_public_key(args.tenant_admin_key),
        references=[read_reference(path) for path in args.reference],
        composes=[DeployedCompose(read_input(path), app_ids.get(str(path))) for path in args.compose],
        models=models,
        now=int(time.time()),
        lifetime_seconds=args.lifetime_days * _DAY,
        tcb=_tcb_rule(args),
        gpu_roles=frozenset(args.gpu_role),
        allowed_devices=args.allow_device,
        revoked_devices=args.revoke_device,
        lifted_revocations=args.lift_revocation,
        retention_months=args.retention_months,
        challenge_max_age_seconds=args.challenge_max_age_seconds,
        evidence_max_age_seconds=args.evidence_max_age_seconds,
        key_releases=[_key_release(*pair) for pair in _pairs(args.key_release, "--key-release")],
        previous=previous,
    )
    # Indented, because people read and edit a draft; signatures are over the canonical form anyway.
    write_output(args.out, json.dumps(json.loads(unsigned(draft)), indent=2).encode() + b"\n")
    if previous is not None:
        print_comparison(compare_signed(previous, parse_signed(unsigned(draft))), Console())
    print(f"{args.out}: version {draft['version']}, not signed yet: {args.threshold} operators must sign it")
    return 0


def _run_sign(args: argparse.Namespace) -> int:
    previous = read_signed(args.previous).policy if args.previous else None
    signed = sign_policy(read_input(args.policy), load_key(args.key), previous)
    if previous is not None:
        print_comparison(compare_signed(previous, parse_signed(signed)), Console())
    write_output(args.policy, signed)
    assessment = assess(signed, int(time.time()))
    print(f"{args.policy}: signed by {assessment.own_signers} of its operators, {assessment.threshold} are needed")
    return 0


def _run_show(args: argparse.Namespace) -> int:
    signed = read_input(args.policy)
    anchors = read_anchors(read_input(args.compose).decode("utf-8", errors="surrogateescape")) if args.compose else None
    assessment = assess(signed, int(time.time()), anchors)
    print_report(assessment, Console())
    return ACCEPTED if assessment.holds else REFUSED


def _run_publish(args: argparse.Namespace) -> int:
    document = read_signed(args.policy)
    # What its own operators have not signed is refused by every service: say so before any of them is asked.
    policy = verify_own(document)
    asyncio.run(publish_policy(document, args.mesh, args.timeout_seconds))
    print(f"policy version {policy.version} is in force, digest {policy.digest.hex()}")
    return 0


def _tcb_rule(args: argparse.Namespace) -> TcbRule:
    return TcbRule(
        statuses=frozenset(args.tcb_status or STRICT_TCB.statuses),
        refused_advisories=frozenset(args.refuse_advisory),
        grace_seconds=args.tcb_grace_days * _DAY,
        minimum_evaluation_number=args.minimum_tcb_evaluation,
        maximum_collateral_age_seconds=args.collateral_max_age_days * _DAY,
    )


def _key_release(name: str, holder: str) -> dict[str, Any]:
    role, separator, algorithm = holder.partition(":")
    return {"name": name, "roles": [role], **({"algorithm": algorithm} if separator else {})}


def _pairs(given: Sequence[str], flag: str) -> list[tuple[str, str]]:
    pairs = []
    for text in given:
        name, separator, value = text.rpartition("=")
        if not (name and separator and value):
            raise InputUnreadable(f"{flag} takes NAME=VALUE, not {text!r}")
        pairs.append((name, value))
    return pairs


def _octets(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("must be hexadecimal") from error
