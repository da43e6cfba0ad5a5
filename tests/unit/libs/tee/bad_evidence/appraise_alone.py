"""Appraises one document in a process of its own, as the attestation service does when it was started with a config.

`python -m tests.unit.libs.tee.bad_evidence.appraise_alone DOCUMENT POLICY QUESTION CONFIG...` prints a line for each
config: the reason of the refusal, `accepted`, or why a service with this config does not start.
"""

from __future__ import annotations

import asyncio
import json
import sys
import warnings
from pathlib import Path

from libs import config
from libs.errors import MeshError
from libs.policy.document import Policy, parse
from libs.tee.appraisal import SignedBy
from libs.tee.archived import Question
from services.attestation.appraisal import Appraisals
from services.attestation.archive import Archive
from services.attestation.config import Config
from services.attestation.feed import Feed


async def _outcome(path: Path, document: bytes, policy: Policy, question: Question) -> str:
    try:
        settings = config.load(path, Config)
        archive = Archive(settings.member.state_dir / "archive", settings.archive_bytes)
        await archive.open()
    except (MeshError, OSError) as error:
        return f"does not start: {type(error).__name__}"
    examination, _ = await Appraisals(archive, Feed(0)).make(document, policy, question)
    return "accepted" if examination.refusal is None else examination.refusal.reason


def main() -> None:
    document, policy, question, *configs = map(Path, sys.argv[1:])
    asked = json.loads(question.read_text())
    context = Question(
        role=asked["role"],
        now=asked["now"],
        spki=bytes.fromhex(asked["spki"]),
        challenge=SignedBy(bytes.fromhex(asked["ca_spki"]), asked["max_age_seconds"]),
    )
    for path in configs:
        outcome = asyncio.run(_outcome(path, document.read_bytes(), parse(policy.read_bytes()), context))
        sys.stdout.write(f"{outcome}\n")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
