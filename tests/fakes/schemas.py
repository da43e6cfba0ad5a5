"""JSON Schemas as programs make them of their types, as large as they may be, and as attackers write them."""

from __future__ import annotations

from functools import reduce
from typing import Any

Schema = dict[str, Any]


def chain(links: int) -> Schema:
    """Objects that each refer to the next one."""
    inner = {str(n): {"type": "object", "properties": {"a": {"$ref": f"#/$defs/{n + 1}"}}} for n in range(links)}
    return {"$defs": {**inner, str(links): {"type": "string"}}, "$ref": "#/$defs/0"}


def doubled(levels: int) -> Schema:
    """As many ways to begin one value as two to the power of the levels."""
    definitions = {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": {**definitions, str(levels): {"type": "string"}}, "$ref": "#/$defs/0"}


def nested(levels: int, kind: object = "object") -> Schema:
    """Objects within objects."""
    innermost: Schema = {"type": "string"}
    return reduce(lambda inner, _: {"type": kind, "properties": {"a": inner}}, range(levels), innermost)


def optional(count: int) -> Schema:
    """An object of members that may all be left out."""
    return {"type": "object", "properties": {f"member_{number}": {"type": "string"} for number in range(count)}}


def referring(count: int) -> Schema:
    """As many different references."""
    return {
        "$defs": {str(number): {"type": "string"} for number in range(count)},
        "type": "object",
        "properties": {str(number): {"$ref": f"#/$defs/{number}"} for number in range(count)},
        "required": [str(number) for number in range(count)],
    }


def merged(target: Schema, times: int) -> Schema:
    """What is merged into one schema so many times, squared."""
    several: Schema = {"allOf": [{"$ref": "#/$defs/target"}] * times}
    return {"$defs": {"target": target, "several": several}, "allOf": [{"$ref": "#/$defs/several"}] * times}


def text(**members: object) -> Schema:
    return {"type": "string", **members}


_MERGED_TWICE: Schema = {str(n): {"properties": {name: {"allOf": [{"$ref": f"#/$defs/{n + 1}"}]} for name in "xy"}}
                         for n in range(24)}  # fmt: skip
_MERGED_BY_TYPES: Schema = reduce(
    lambda inner, _: {"type": ["object", "string"], "allOf": [{"properties": {"a": inner}}]},
    range(12),
    {"type": "object", "properties": {str(number): text() for number in range(60)}},
)
_RECORD: Schema = {
    "type": "object",
    "properties": {"name": text(description="Who."), "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}

USUAL: dict[str, Schema] = {
    "nothing": {},
    "a record": _RECORD,
    "a tree": {
        "$defs": {
            "Node": {
                "type": "object",
                "properties": {"value": text(), "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}}},
                "required": ["value", "children"],
            }
        },
        "$ref": "#/$defs/Node",
    },
    "a list that ends": {
        "$defs": {
            "Item": {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#/$defs/Item"}, {"type": "null"}]}},
            }
        },
        "$ref": "#/$defs/Item",
    },
    "one of several": {
        "$defs": {
            kind: {"type": "object", "properties": {"kind": {"const": kind}, "size": {"type": "number"}}}
            for kind in ("circle", "square", "line")
        },
        "type": "array",
        "items": {"oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in ("circle", "square", "line")]},
        "maxItems": 100,
    },
    "a reference with a description": {
        "$defs": {"Colour": {"enum": ["red", "green"], "type": "string"}, "Owner": _RECORD},
        "type": "object",
        "properties": {
            "colour": {"allOf": [{"$ref": "#/$defs/Colour"}], "default": "red"},
            "owner": {"allOf": [{"$ref": "#/$defs/Owner"}], "description": "Whose it is."},
        },
    },
    "nullable members": nested(8, ["object", "null"]),
    "places as references": {
        "type": "object",
        "properties": {"from": _RECORD, "to": {"$ref": "#/properties/from"}},
    },
    "texts of a form": {
        "type": "object",
        "properties": {
            "mail": text(pattern=r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$"),
            "slug": text(pattern="^[a-z0-9]+(-[a-z0-9]+)*$", minLength=1, maxLength=64),
            "when": text(format="date-time"),
            "id": text(format="uuid"),
        },
    },
    "a tool of many arguments": optional(60),
}

AS_LARGE_AS_TAKEN: dict[str, Schema] = {
    "optional members": optional(300),
    "alternatives": {"enum": [f"{number}" for number in range(512)]},
    "alternatives that begin alike": {"enum": ["a" * 60 + str(number) for number in range(512)]},
    "a chain": chain(63),
    "references": referring(250),
    "beginnings": doubled(9),
    "objects in objects": nested(28),
    "a text of a length": text(minLength=1900, maxLength=1990),
    "many texts of a length": {
        "type": "object", "properties": {str(number): text(maxLength=1990) for number in range(100)}
    },
    "items": {"type": "array", "items": text(), "minItems": 1900, "maxItems": 1990},
    "names": {
        "type": "object",
        "properties": {"_" * 120 + str(number): text() for number in range(100)},
        "additionalProperties": text(),
    },
    "places of a pattern": text(pattern="^" + "ab" * 128 + "$"),
    "steps of a pattern": text(pattern="^(" + "|".join(chr(0x4E00 + number) for number in range(32)) + ")*$"),
    "counts of a pattern": text(pattern="^(ab){0,990}$"),
    "ambiguities of a pattern": text(pattern="^a*a*bc*c*$"),
    "a mail address": USUAL["texts of a form"],
}  # fmt: skip

ENDLESS: dict[str, Schema] = {
    "merged into itself": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "allOf": [{"$ref": "#/$defs/a"}]},
    "members merged into themselves": {
        "$defs": {"a": {"properties": {"x": {"allOf": [{"$ref": "#/$defs/a"}]}}}},
        "$ref": "#/$defs/a",
    },
    "merged twice at each level": {"$defs": {**_MERGED_TWICE, "24": text()}, "$ref": "#/$defs/0"},
    "merged by types": _MERGED_BY_TYPES,
    "beginnings that double": doubled(40),
    "types that double": nested(28, ["object", "object"]),
    "optional members": optional(2000),
    "a name that is long": {"type": "object", "properties": {"_" * 200_000: text()}},
    "a name that is left out": {"properties": {"x" * 200_000: text()}, "additionalProperties": text()},
    "objects in objects": nested(200),
    "a long chain": chain(400),
    "references": referring(2000),
    "a reference that is long": {"anyOf": [{"$ref": "#/" + "_" * 200_000}]},
    "alternatives": {"enum": list(range(100_000))},
    "items": {"type": "array", "items": text(), "minItems": 10**6, "maxItems": 10**6},
    "many texts of a length": {
        "type": "object", "properties": {str(number): text(maxLength=1999) for number in range(1000)}
    },
    "groups of a pattern": text(pattern="^" + "(" * 100_000 + ")" * 100_000 + "$"),
    "a pattern that repeats nothing": text(pattern="^*$"),
    "a pattern that repeats looking ahead": text(pattern="^(?=a)*$"),
    "counts within counts": text(pattern="^((((a{0,99}){0,99}){0,99}){0,99}){0,99}$"),
    "a pattern that is read again and again": merged(text(pattern="[" + "a" * 510 + "]"), 40),
    "many patterns that take long to read": {
        "properties": {str(number): text(pattern=f"{number}[" + r"\S" * 250 + "]") for number in range(250)}
    },
    "members that are required again and again": merged({"required": [f"x{number}" for number in range(300)]}, 40),
    "a pattern of two ways": text(pattern="^(-|-){64}$"),
    "a pattern of many ends": text(pattern="^(a?){64}$"),
}  # fmt: skip
