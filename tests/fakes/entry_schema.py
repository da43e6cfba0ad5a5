"""What the documentation promises of entries, held against what services really write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from libs import jcs
from libs.transparency.leaf import Kind

_DOCS = Path(__file__).parents[2] / "docs"


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_DOCS / name).read_bytes())
    return found


SCHEMA = _read("entry.schema.json")
_POLICY = "policy.schema.json"
_REGISTRY: Registry[Any] = Registry().with_resources(
    [(_POLICY, Resource.from_contents(_read(_POLICY))), (SCHEMA["$id"], Resource.from_contents(SCHEMA))]
)
_ENTRIES = Draft202012Validator(SCHEMA, registry=_REGISTRY)
_BODIES = {
    kind: Draft202012Validator({"$ref": f"{SCHEMA['$id']}#/$defs/{kind.name.lower()}"}, registry=_REGISTRY)
    for kind in Kind
    if kind.name.lower() in SCHEMA["$defs"]
}

_EXCHANGES = Draft202012Validator(_read("exchange.schema.json"))
_LINEAGES = Draft202012Validator(_read("lineage.schema.json"))

DOCUMENTED = frozenset(_BODIES)
"""The kinds of entries that the documentation describes."""


def require_documented(kind: Kind, body: Mapping[str, Any]) -> None:
    """Raise `ValidationError` unless this is a body that the documentation describes."""
    _BODIES[kind].validate(jcs.loads(jcs.dumps(dict(body))))


def require_documented_entry(canonical: bytes) -> Kind:
    """Return the kind of a canonical entry. Raises `ValidationError`."""
    value = jcs.loads_object(canonical)
    _ENTRIES.validate(value)
    return Kind(value["kind"])


def require_documented_exchange(data: bytes) -> None:
    """Raise `ValidationError` unless this is an exchange in a file, as the documentation describes it."""
    _EXCHANGES.validate(jcs.loads_canonical(data))


def require_documented_lineage(data: bytes) -> None:
    """Raise `ValidationError` unless this is a lineage in a file, as the documentation describes it."""
    _LINEAGES.validate(jcs.loads_canonical(data))
