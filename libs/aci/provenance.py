"""Responsible for what a report says of where the measured code comes from (§4.1).

The image is read from the measured app-compose, so whoever replays the quote's event log finds the same digest there.
What the operators' file says is a label beside it.
"""

from __future__ import annotations

import re

from libs import jcs
from libs.aci.report import SourceProvenance
from libs.errors import Code, MeshError

IMAGE, SOURCES = "image", "sources"
"""What the digest of an image may be over: its manifest, or, where no image runs, the files that do."""
_IMAGE = re.compile(r"""\bimage\b["']?[^\S\n]*:[^\S\n]*(.*?)[^\S\n]*$""", re.MULTILINE)
"""However YAML lets the member be written; one that is not plainly pinned is refused."""
_PINNED = re.compile(r"\S+@(sha256:[0-9a-f]{64})")


class ProvenanceUnknown(MeshError):
    """What was measured does not lead to one image: a report without one would have to be rejected."""

    code = Code.FAILED_PRECONDITION
    reason = "PROVENANCE_UNKNOWN"


def provenance_of(app_compose: str, *, repo_url: str | None, image_digest_of: str) -> SourceProvenance:
    """Return the provenance for the compose that this service was measured with. Raises `ProvenanceUnknown`."""
    return SourceProvenance(
        repo_url=repo_url,
        image_digest=_image_digest(app_compose),
        image_provenance={"digest_of": SOURCES} if image_digest_of == SOURCES else None,
    )


def _image_digest(app_compose: str) -> str:
    """The digest of the only image that the compose runs."""
    try:
        services = jcs.loads_object(app_compose.encode("utf-8")).get("docker_compose_file")
    except (UnicodeEncodeError, jcs.JsonMalformed) as error:
        raise ProvenanceUnknown("the measured app-compose cannot be read") from error
    images = _IMAGE.findall(services) if isinstance(services, str) else []
    digests = {pinned[1] if (pinned := _PINNED.fullmatch(image)) else None for image in images}
    if len(digests) != 1 or (digest := digests.pop()) is None:
        raise ProvenanceUnknown("the measured app-compose must run one image, and name it by its digest everywhere")
    return digest
