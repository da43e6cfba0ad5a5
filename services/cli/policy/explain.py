"""It is responsible for `teemesh policy explain`: whether evidence would be admitted to a role, and by which rule.

Exit status: 0 admitted (and released the key, where one is asked about), 1 refused, 2 when it cannot be judged.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from rich.console import Console

from libs.errors import MeshError
from libs.policy.revocation import RevocationSet
from libs.policy.signatures import SignedPolicy
from libs.policy.succession import verify_valid_at
from services.cli.decisions.explanation import Question, decide
from services.cli.decisions.key_decision import decide_key
from services.cli.decisions.verdict import Explained, print_explained
from services.cli.evidence.file import DocumentFile
from services.cli.evidence.inputs import read_evidence, read_policy
from services.cli.evidence.terms import add_document_terms, document_terms, judge_policy, policy_file
from services.cli.policy.revocation_inputs import add_revocation_options, counted_revocations
from services.cli.terminal.inputs import InputUnreadable
from services.cli.terminal.verdicts import ACCEPTED, REFUSED, usable


def add_explain(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `teemesh policy explain`."""
    parser.add_argument("file", type=Path, metavar="EVIDENCE", help="an evidence document")
    add_document_terms(parser)
    parser.add_argument(
        "--draft", action="store_true", help="judge the policy as if its operators had signed it, before they do"
    )
    add_revocation_options(parser)
    parser.add_argument("--spiffe-id", metavar="ID", help="the instance that shows it; default: none is revoked")
    parser.add_argument("--key", metavar="NAME", help="say too whether it would get this key, and by which rule")
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    parser.set_defaults(run=lambda args: usable(_run, args))


def _run(args: argparse.Namespace) -> int:
    file = read_evidence(args.file)
    if not isinstance(file, DocumentFile):
        raise InputUnreadable(f"{args.file} is no evidence document, and nothing else admits to a role")
    source = policy_file(args)
    signed = read_policy(source)
    policy = signed.policy
    now = int(time.time()) if args.now is None else args.now
    signatures, policy_refusal = _judge_policy(signed, args, now)
    terms, binding = document_terms(args, policy, now)
    revocations = RevocationSet().union(counted_revocations(args, policy.trust_domain))
    decision = decide(Question(file.data, policy, policy_refusal, revocations, args.spiffe_id, terms))
    key = None if args.key is None else decide_key(policy, args.key, decision)
    explained = Explained(file.data, now, policy, str(source), signatures, binding, revocations, decision, key)
    if args.json:
        print(json.dumps(explained.to_json(), indent=2))
    else:
        print_explained(explained, Console())
    return ACCEPTED if explained.holds else REFUSED


def _judge_policy(signed: SignedPolicy, args: argparse.Namespace, now: int) -> tuple[str, MeshError | None]:
    if not args.draft:
        return judge_policy(signed, args.compose, now)
    if args.compose is not None:
        raise InputUnreadable("--compose judges the signatures of a policy, and --draft takes them for given")
    words = "signatures: taken for given, as of a draft"
    try:
        verify_valid_at(signed.policy, now)
    except MeshError as refusal:
        return words, refusal
    return words, None
