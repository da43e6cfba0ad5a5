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


def render_compose(anchors: Anchors, image_digest: str, template: bytes | None = None) -> bytes:
    """Return the app-compose to deploy for the role of `anchors`, from the shipped template unless another is given.

    Raises `InputUnreadable`, `ComposeMalformed`.
    """
    if template is None and anchors.role not in SERVICE_ROLES:
        raise InputUnreadable(f"no template for {anchors.role} ships with teemesh: give yours with --template")
    if template is None:
        template = read_input(template_path(anchors.role))
    return render(template, image_digest, anchors)
