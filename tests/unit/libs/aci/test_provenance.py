from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from libs import jcs
from libs.aci.provenance import IMAGE, SOURCES, ProvenanceUnknown, provenance_of
from libs.aci.report import SourceProvenance
from libs.policy.compose import Anchors, render

TEMPLATE = Path(__file__).parents[4] / "deploy" / "dstack" / "router.app-compose.json"
DIGEST, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32


def compose(services: Any) -> str:
    return jcs.dumps({"docker_compose_file": services}).decode()


def running(*images: str) -> str:
    return compose("services:\n" + "".join(f"  s{n}:\n    image: {image}\n" for n, image in enumerate(images)))


def test_the_image_is_the_one_that_the_shipped_compose_was_rendered_for() -> None:
    measured = render(TEMPLATE.read_bytes(), DIGEST, Anchors("router", "mesh.test", (bytes(32),), 1))
    found = provenance_of(measured.decode(), repo_url="https://git.test", image_digest_of=IMAGE)
    assert found == SourceProvenance("https://git.test", None, DIGEST, None)


def test_a_digest_of_sources_is_called_one() -> None:
    found = provenance_of(running(f"r@{DIGEST}"), repo_url=None, image_digest_of=SOURCES)
    assert (found.image_digest, found.image_provenance) == (DIGEST, {"digest_of": "sources"})


@pytest.mark.parametrize(
    "app_compose",
    [
        "{",
        "\ud800",
        "{}",
        compose(None),
        compose("services: {}\n"),
        running("teemesh/router:latest"),
        running("teemesh/router@" + DIGEST[:-1]),
        running("teemesh/router@" + DIGEST.upper()),
        running("teemesh/router"),
        running(f"teemesh/router@{DIGEST}", "sidecar:latest"),
        running(f"teemesh/router@{DIGEST}", f"sidecar@{OTHER}"),
        compose(f"services:\n  a:\n    image:\n      teemesh/router@{DIGEST}\n"),
        compose(f"services:\n  a: {{image: teemesh/router@{DIGEST}}}\n"),
        compose(f'services:\n  a:\n    image: r@{DIGEST}\n  b: {{"image": sidecar}}\n'),
        compose(f"services:\n  a:\n    image: r@{DIGEST}\n  b: {{cpus: 1, 'image' : sidecar}}\n"),
    ],
)
def test_what_leads_to_no_one_image_is_refused(app_compose: str) -> None:
    with pytest.raises(ProvenanceUnknown):
        provenance_of(app_compose, repo_url="https://git.test", image_digest_of=IMAGE)
