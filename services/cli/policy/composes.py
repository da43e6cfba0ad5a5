"""It is responsible for the app-compose templates that ship with teemesh: where they are, and what they render to."""

from __future__ import annotations

from pathlib import Path

from libs.policy.compose import Anchors, render
from libs.policy.vocabulary import SERVICE_ROLES
from services.cli.terminal.inputs import InputUnreadable, read_input

TEMPLATES = Path(__file__).parents[3] / "deploy" / "dstack"


def template_path(role: str) -> Path:
    """Return where the template of a role is."""
    return TEMPLATES / f"{role}.app-compose.json"


def local_template(role: str) -> Path:
    """Return the template for a mesh on one machine: a node runs the embedded engine there, everyone else as ever."""
    return TEMPLATES / "node-embedded.app-compose.json" if role == "node" else template_path(role)


def render_compose(anchors: Anchors, image_digest: str, template: Path | None = None) -> bytes:
    """Return the app-compose to deploy for the role of `anchors`, from the shipped template unless another is given.

    Raises `InputUnreadable`, `ComposeMalformed`.
    """
    if template is None and anchors.role not in SERVICE_ROLES:
        raise InputUnreadable(f"no template for {anchors.role} ships with teemesh: give yours with --template")
    return render(read_input(template or template_path(anchors.role)), image_digest, anchors)
