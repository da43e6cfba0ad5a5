"""It is responsible for how large a grammar the schemas of a request body may have the engine make.

Engines turn a schema into a grammar, and keep to it at every token. A schema of a few hundred bytes may take a grammar
that has no end: where it names itself, or what it names twice at each of thirty levels. So the grammar is walked here
as it would be made, and the walk ends where its bounds are: it counts its own work, too. What it follows is JSON
Schema's as llama.cpp reads it, the most wasteful of the engines that are known here; a keyword that only others read is
walked, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from libs.aci.rewriting import Number, is_text
from services.node.patterns import PatternRefused, size_of

_MEMBERS = ("functions", "output_config", "response_format", "text", "tools")
"""Of a body: those that may hold schemas."""
_SCHEMAS = frozenset({"input_schema", "parameters", "schema"})
"""What a schema is called in them, in every API."""
_NO_SCHEMAS = frozenset({"grammar", "regex", "structural_tag"})
"""Types of formats that say in another language than JSON Schema's what may be answered."""

MOST_VALUES = 1 << 14
"""Of all those members, names included."""
LONGEST_NAME = 128
"""Characters of a member's name: engines go through names character by character, each within the one before."""
DEEPEST_JSON = 64
MOST_REFERENCES = 256
"""Different ones of one schema: for each the engine copies all of it."""
LONGEST_REFERENCE = 1024
DEEPEST_RULE = 128
"""How deeply the engine calls itself while it makes the rules of a schema, `$ref` by `$ref`."""
MOST_REPETITIONS = 1 << 16
MOST_ALTERNATIVES = 512
"""How many ways there may be to begin one value: the engine goes through all of them at every token."""
MOST_RULES = 1 << 12
MOST_WORK = 1 << 22
"""About how many characters the engine writes of rules and their names. To walk as much takes some tens of
milliseconds: what one schema takes longer to visit than another MUST be spent."""

_RULE = 64
"""Characters of a rule without its name."""
_COPY = 16
"""Of one that is made for each repetition, and for each member that is said to be required."""
_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_COUNTED_OUT = 2000
"""As many copies of a rule the engine makes at most, where it is told how often something is repeated."""
_REPETITIONS = ("maxContains", "maxItems", "maxLength", "maxProperties", "minContains", "minItems", "minLength",
                "minProperties")  # fmt: skip
_INNER = ("additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then",
          "unevaluatedItems", "unevaluatedProperties")  # fmt: skip
_INNER_LISTS = ("items", "prefixItems")
_INNER_MAPS = ("dependentSchemas", "patternProperties", "properties")


class _Excess(Exception):
    """What is beyond its bound."""


def may_hold_schemas(members: Mapping[str, Any]) -> bool:
    """Say whether there may be schemas in a body, which take long to walk, however few its values are."""
    return any(name in members for name in _MEMBERS)


def schema_excess(members: Mapping[str, Any]) -> str | None:
    """Say what in the schemas of a body is more than an engine may be given; None where nothing is."""
    held = {name: members[name] for name in _MEMBERS if name in members}
    try:
        _require_few_values(held)
        grammar = _Grammar()
        for schema in _schemas(held):
            grammar.add(schema)
    except (_Excess, PatternRefused) as error:
        return str(error)
    return None


def _require_few_values(held: Mapping[str, Any]) -> None:
    left = MOST_VALUES
    level: list[Any] = [held]
    for _ in range(DEEPEST_JSON):
        values: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                left -= len(value)
                values += value.values()
                if any(len(name) > LONGEST_NAME for name in value):
                    raise _Excess(f"a name in a schema has more than {LONGEST_NAME} characters")
            elif isinstance(value, list):
                values += value
        left -= len(values)
        if left < 0:
            raise _Excess(f"the schemas have more than {MOST_VALUES} values and names")
        if not values:
            return
        level = values
    raise _Excess(f"the schemas are nested more than {DEEPEST_JSON} levels deep")


def _schemas(value: Any) -> Iterator[Any]:
    """Give each schema, wherever it stands. Raises `_Excess` for what is written in another language."""
    if isinstance(value, list):
        for item in value:
            yield from _schemas(item)
    if not isinstance(value, dict):
        return
    kind = value.get("type")
    if is_text(kind) and kind in _NO_SCHEMAS:
        raise _Excess(f"a format of the type {kind} is not taken: a schema says what may be answered")
    for name, member in value.items():
        if name in _SCHEMAS:
            yield member
        else:
            yield from _schemas(member)


class _Grammar:
    """What all schemas of a body come to."""

    def __init__(self) -> None:
        self._left = MOST_WORK
        self._rules_left = MOST_RULES
        self._root: Any = None
        self._named: dict[str, int] = {}
        self._targets: dict[str, Any] = {}
        """What each reference of the schema leads to."""
        self._inlined = 0

    def add(self, schema: Any) -> None:
        """Walk a schema. Raises `_Excess` or `PatternRefused`."""
        self._root, self._named = schema, {}
        references = _references(schema)
        if len(references) > MOST_REFERENCES:
            raise _Excess(f"a schema has more than {MOST_REFERENCES} different references")
        self._targets = {reference: self._found(reference) for reference in references}
        self._rules(schema, 0, 0)

    def _rules(self, schema: Any, path: int, depth: int, *, inlined: bool = False) -> int:
        """Spend what a schema takes; return in how many ways its values may begin.

        `path` is the length of the rule's name, of all names on the way there. What is `inlined` goes into the rules
        of another schema: a reference there is what it refers to, once more.
        """
        self._spend(_RULE + path)
        self._rules_left -= 1
        if self._rules_left < 0:
            raise _Excess(f"the schemas take a grammar of more than {MOST_RULES} rules")
        if depth > DEEPEST_RULE:
            raise _Excess(f"the schemas lead more than {DEEPEST_RULE} levels deep, one into the other")
        if not isinstance(schema, dict):
            return 1
        below = depth + 1
        ways = self._referred(schema["$ref"], path, below, inlined) if "$ref" in schema else 1
        kinds = _list(schema, "type")
        if len(kinds) > len(_TYPES.intersection(map(str, kinds))):
            raise _Excess("a schema names a type twice, or one that JSON Schema does not know")
        self._repeated(schema)
        self._object(schema, path, inlined)
        for keyword in _INNER:
            if isinstance(schema.get(keyword), dict):
                self._rules(schema[keyword], path + len(keyword), below)
        for keyword in _INNER_LISTS:
            for item in _list(schema, keyword):
                self._rules(item, path + len(keyword), below)
        for keyword in _INNER_MAPS:
            for name, member in _map(schema, keyword).items():
                self._rules(member, path + len(name) + 1, below)
        # Once for each type: those of several types are several schemas.
        for _ in kinds or [None]:
            self._merged(schema, path, below)
        ways = max(ways, len(kinds), len(_list(schema, "enum")))
        for keyword in ("anyOf", "oneOf"):
            alternatives = _list(schema, keyword)
            ways = max(ways, sum(self._rules(each, path + 4, below, inlined=inlined) for each in alternatives))
        if ways > MOST_ALTERNATIVES:
            raise _Excess(f"a schema has more than {MOST_ALTERNATIVES} alternatives")
        return ways

    def _referred(self, reference: Any, path: int, depth: int, inlined: bool) -> int:
        if not is_text(reference):
            raise _Excess("a $ref must be a string")
        target = self._targets[reference]
        if inlined:
            return self._rules(target, path, depth, inlined=True)
        if reference not in self._named:
            # What leads to itself is begun once.
            self._named[reference] = 1
            self._named[reference] = self._rules(target, len(reference), depth)
        return self._named[reference]

    def _found(self, reference: str) -> Any:
        """By its names as they are written, without escapes: so the engine takes them."""
        if len(reference) > LONGEST_REFERENCE or not reference.startswith("#"):
            raise _Excess(f"a $ref must lead into its own schema, in {LONGEST_REFERENCE} characters")
        target = self._root
        for step in reference[1:].split("/")[1:]:
            if isinstance(target, dict) and step in target:
                target = target[step]
            elif isinstance(target, list) and step.isascii() and step.isdigit() and int(step) < len(target):
                target = target[int(step)]
            else:
                raise _Excess("a $ref leads nowhere in its own schema")
        return target

    def _repeated(self, schema: Mapping[str, Any]) -> None:
        for keyword in _REPETITIONS:
            times = schema.get(keyword)
            if times is None:
                continue
            # JSON's numbers have no leading zeros: a longer one is a larger one.
            known = isinstance(times, Number) and times.isdigit() and len(times) <= len(str(MOST_REPETITIONS))
            if not known or int(times) > MOST_REPETITIONS:
                raise _Excess(f"{keyword} must be a whole number from 0 to {MOST_REPETITIONS}")
            self._spend(min(int(times), _COUNTED_OUT) * _COPY)
        for pattern in (schema.get("pattern"), *_map(schema, "patternProperties")):
            if pattern is None:
                continue
            if not is_text(pattern):
                raise _Excess("pattern must be a string")
            self._spend(size_of(pattern) * _COPY)

    def _object(self, schema: Mapping[str, Any], path: int, inlined: bool) -> None:
        properties = _map(schema, "properties")
        if inlined:
            self._inlined += len(properties)
        listed = _list(schema, "required")
        self._spend(len(listed) * _COPY)
        required = {name for name in listed if is_text(name)}
        self._left_out(sum(name not in required for name in properties), path)
        for name in properties:
            self._spend(len(name))

    def _merged(self, schema: Mapping[str, Any], path: int, depth: int) -> None:
        """All components of one `allOf` are one object's."""
        before, self._inlined = self._inlined, 0
        for component in _list(schema, "allOf"):
            self._rules(component, path, depth, inlined=True)
        self._left_out(self._inlined, path)
        self._inlined = before

    def _left_out(self, optional: int, path: int) -> None:
        """After each member that may be left out any of those after it may come: every pair has a rule."""
        self._spend(optional * optional // 2 * (_RULE + path))

    def _spend(self, work: int) -> None:
        self._left -= work
        if self._left < 0:
            raise _Excess("the schemas take a larger grammar than an engine may be given")


def _references(schema: Any) -> set[str]:
    found: set[str] = set()
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if is_text(reference := value.get("$ref")):
                found.add(reference)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return found


def _list(schema: Mapping[str, Any], keyword: str) -> list[Any]:
    value = schema.get(keyword)
    return value if isinstance(value, list) else []


def _map(schema: Mapping[str, Any], keyword: str) -> Mapping[str, Any]:
    value = schema.get(keyword)
    return value if isinstance(value, dict) else {}
