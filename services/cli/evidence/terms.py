"""It is responsible for what the command line says evidence is to be held against: policy, challenge, key, collateral.

A flag that would change nothing is refused: an operator must not believe that it was heeded.
"""

from __future__ import annotations

import argparse
from datetime import datetime
from pathlib import Path

from libs.errors import MeshError
from libs.policy.document import Policy
from libs.policy.signatures import SignedPolicy, verify_own, verify_seed
from libs.policy.succession import verify_valid_at
from libs.tee.appraisal import OwnNonce, SignedBy
from libs.tee.ratls.verification import IssuedBy
from services.cli.evidence.appraisal import CertificateTerms, DocumentTerms
from services.cli.evidence.inputs import read_ca, read_certificate_file, read_collateral, read_compose, read_spki
from services.cli.mesh.layout import DEFAULT_STATE
from services.cli.mesh.reading import MeshReader
from services.cli.terminal.inputs import InputUnreadable

_DEFAULT_MESH = DEFAULT_STATE / "mesh.json"
_NOBODY = b""
"""No key has it, so no challenge is signed by it."""

_DIGEST_BYTES, _APP_ID_BYTES = 32, 20
_DOCUMENT_FLAGS = ("ca", "nonce", "spki")
_CERTIFICATE_FLAGS = ("collateral", "app_id", "issuer", "max_age_seconds")
PIN_ADVICE = (
    "nothing says who may have issued the challenge: give --ca FILE (the mesh CA's certificate), --mesh PATH (a "
    "mesh.json that names it) or --nonce HEX (of a challenge that you made yourself)"
)


def add_terms(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what evidence is held against: a document or a certificate."""
    add_document_terms(parser)
    parser.add_argument("--collateral", type=Path, metavar="FILE", help="for a certificate, which carries none")
    parser.add_argument(
        "--app-id", type=_app_id, metavar="HEX", help="for a certificate: the application that is meant"
    )
    parser.add_argument(
        "--issuer", type=Path, metavar="FILE", help="for a certificate: the authority whose word on its dates counts"
    )
    parser.add_argument("--max-age-seconds", type=int, metavar="N", help="with --issuer; default: as for evidence")


def add_document_terms(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what an evidence document is held against."""
    _add_policy(parser)
    parser.add_argument("--role", help="default: the role that the claims name")
    parser.add_argument("--now", type=_moment, metavar="T", help="unix seconds or RFC 3339; default: the clock")
    pins = parser.add_mutually_exclusive_group()
    _add_ca(pins)
    pins.add_argument("--nonce", type=digest, metavar="HEX", help="the nonce of your own challenge")
    _add_mesh(pins)
    parser.add_argument("--spki", metavar="FILE|HEX", help="the key that the evidence must speak for")


def add_policy_terms(parser: argparse.ArgumentParser, now_help: str) -> None:
    """Add the flags that say by which policy, under which CA and as of when."""
    _add_policy(parser)
    parser.add_argument("--now", type=_moment, metavar="T", help=now_help)
    pins = parser.add_mutually_exclusive_group()
    _add_ca(pins)
    _add_mesh(pins)


def policy_file(args: argparse.Namespace) -> Path:
    """Return the file of the policy that was named, by itself or by a mesh.json. Raises `InputUnreadable`."""
    if args.policy is not None:
        return Path(args.policy)
    mesh = _mesh_file(args)
    if mesh is None:
        raise InputUnreadable("nothing says which policy: give --policy FILE, or --mesh PATH (a mesh.json)")
    return mesh.parent / MeshReader(mesh).text("policy")


def ca_of(args: argparse.Namespace) -> bytes:
    """Return the SubjectPublicKeyInfo of the mesh CA that was named, by itself or by a mesh.json.

    Raises `InputUnreadable`, `CertificateNotAccepted`.
    """
    return read_ca(ca_file(args))


def ca_file(args: argparse.Namespace) -> Path:
    """Return the file of the mesh CA's certificate, named by itself or by a mesh.json. Raises `InputUnreadable`."""
    if args.ca is not None:
        return Path(args.ca)
    mesh = _mesh_file(args)
    if mesh is None:
        raise InputUnreadable("nothing says which CA: give --ca FILE, or --mesh PATH (a mesh.json)")
    return mesh.parent / MeshReader(mesh).text("mesh_ca")


def judge_policy(signed: SignedPolicy, compose: Path | None, now: int) -> tuple[str, MeshError | None]:
    """Say by whose word the policy is judged, and why it is not in force at `now`, if it is not.

    Raises `InputUnreadable` and `ComposeMalformed`.
    """
    policy = signed.policy
    anchors = None
    words = (
        "signatures: enough by the policy's own word; nobody's was checked against measured operators: give --compose"
    )
    if compose is not None:
        anchors = read_compose(compose)
        words = f"signatures: enough of the operators that {compose} is measured with"
    try:
        if anchors is None:
            verify_own(signed)
        else:
            verify_seed(signed.document, anchors)
        verify_valid_at(policy, now)
    except MeshError as refusal:
        return words, refusal
    return words, None


def refuse_certificate_flags(args: argparse.Namespace) -> None:
    """Raises `InputUnreadable` where a document is given with what only a certificate needs."""
    _refuse(args, _CERTIFICATE_FLAGS, "is for certificates: a document carries its own")


def document_terms(args: argparse.Namespace, policy: Policy, now: int) -> tuple[DocumentTerms, str]:
    """Return what a document is judged by, and in words what step 5 holds it against. Raises `InputUnreadable`."""
    challenge, words = _challenge(args, policy)
    spki = None if args.spki is None else read_spki(args.spki)
    words += "; its key is not compared: give --spki" if spki is None else "; its key is compared"
    return DocumentTerms(now, args.role, challenge, spki), words


def certificate_terms(args: argparse.Namespace, policy: Policy, now: int) -> tuple[CertificateTerms, str]:
    """Return what a certificate is judged by, and in words what step 5 holds it against.

    Raises `InputUnreadable`, `JsonMalformed`, `CollateralMalformed`.
    """
    _refuse(args, _DOCUMENT_FLAGS, "is for evidence documents: a certificate binds its own key and no challenge")
    if args.policy is not None:
        _refuse(args, ("mesh",), "names a policy too, and a certificate needs nothing else of it: give one of the two")
    if args.collateral is None:
        raise InputUnreadable("a certificate carries no collateral: give --collateral FILE")
    if args.role is None:
        raise InputUnreadable("a certificate claims no role: say with --role for which it is to be judged")
    collateral = read_collateral(args.collateral)
    if args.issuer is None:
        if args.max_age_seconds is not None:
            raise InputUnreadable("--max-age-seconds needs --issuer: a certificate's dates are its issuer's word")
        words = "the certificate's own key; of any age, because no --issuer is given whose word on its dates counts"
        return CertificateTerms(now, args.role, collateral, None, args.app_id), words
    maximum = policy.evidence_max_age_seconds if args.max_age_seconds is None else args.max_age_seconds
    issuer = read_certificate_file(args.issuer)
    words = f"the certificate's own key; issued by {args.issuer}, at most {maximum} s ago"
    return CertificateTerms(now, args.role, collateral, IssuedBy(issuer, maximum), args.app_id), words


def is_unpinned(terms: DocumentTerms) -> bool:
    """Say whether nothing names the issuer of challenges, so that none can pass."""
    return isinstance(terms.challenge, SignedBy) and terms.challenge.ca_spki_der == _NOBODY


def _challenge(args: argparse.Namespace, policy: Policy) -> tuple[OwnNonce | SignedBy, str]:
    if args.nonce is not None:
        return OwnNonce(args.nonce), "the nonce that was given"
    maximum = policy.evidence_max_age_seconds
    if args.ca is not None:
        return SignedBy(read_ca(args.ca), maximum), _signed_words(args.ca, maximum)
    mesh = _mesh_file(args)
    if mesh is None:
        return SignedBy(_NOBODY, maximum), "nothing: no CA and no nonce was given"
    ca = mesh.parent / MeshReader(mesh).text("mesh_ca")
    return SignedBy(read_ca(ca), maximum), _signed_words(mesh, maximum)


def _add_policy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy", type=Path, metavar="FILE", help="the signed policy; default: the one that the mesh.json names"
    )
    parser.add_argument(
        "--compose", type=Path, help="judge the policy by the operators that this app-compose is measured with"
    )


def _add_ca(pins: argparse._MutuallyExclusiveGroup) -> None:
    pins.add_argument("--ca", type=Path, metavar="FILE", help="the mesh CA's certificate, which signs challenges")


def _add_mesh(pins: argparse._MutuallyExclusiveGroup) -> None:
    pins.add_argument(
        "--mesh", type=Path, help=f"a mesh.json, which names CA and policy; default: {_DEFAULT_MESH}, if it is"
    )


def _mesh_file(args: argparse.Namespace) -> Path | None:
    """Return the mesh.json that was named, or that of the mesh here, if there is one."""
    return args.mesh or (_DEFAULT_MESH if _DEFAULT_MESH.exists() else None)


def _signed_words(source: Path, maximum: int) -> str:
    return f"a challenge signed by the mesh CA of {source}, at most {maximum} s old"


def _refuse(args: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if getattr(args, name) is not None:
            raise InputUnreadable(f"--{name.replace('_', '-')} {why}")


def _moment(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("give unix seconds or RFC 3339, as 2026-11-21T15:00:00Z") from error
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError("the time has no zone: end it with Z for UTC")
    return int(moment.timestamp())


def digest(text: str) -> bytes:
    """Read a SHA-256 digest from the command line."""
    return _octets(text, _DIGEST_BYTES)


def _app_id(text: str) -> bytes:
    return _octets(text, _APP_ID_BYTES)


def _octets(text: str, size: int) -> bytes:
    try:
        data = bytes.fromhex(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("give hexadecimal digits") from error
    if len(data) != size:
        raise argparse.ArgumentTypeError(f"give {2 * size} hexadecimal digits")
    return data
