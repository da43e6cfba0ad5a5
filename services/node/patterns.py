"""It is responsible for which regular expressions an engine may be given: those that it reads in few ways at once.

An engine follows every way in which a pattern may be read, token by token, and a token may have dozens of characters.
So a pattern is taken apart into the positions at which a character is read and those that may come next (Glushkov,
1961); where one character leads to two of them, it is ambiguous. A few such places are as common as mail addresses.
Where both lead back to it, or where there are many, the ways double with each character.

The language is ECMA-262's, as JSON Schema has it, short of what no grammar can say: looking around, and back.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

LONGEST_PATTERN = 512
MOST_POSITIONS = 256
MOST_STEPS = 1024
"""From one position to the next."""
DEEPEST_GROUP = 16
MOST_COPIES = 2000
"""How often a position may be repeated by counted repetitions, one within the other."""
MOST_AMBIGUOUS = 4
"""Pairs of positions between which one character does not decide."""

_LAST = 0x10FFFF
_Ranges = tuple[tuple[int, int], ...]
_ANY: _Ranges = ((0, _LAST),)
_DOT: _Ranges = ((0, 9), (11, 12), (14, 0x2027), (0x202A, _LAST))
"""All but the ends of lines."""
_DIGITS: _Ranges = ((48, 57),)
_WORD: _Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE: _Ranges = ((9, 13), (32, 32), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
                   (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF))  # fmt: skip
_CLASSES = {"d": _DIGITS, "s": _SPACE, "w": _WORD}
_CONTROLS = {"f": 12, "n": 10, "r": 13, "t": 9, "v": 11}
_SIGNS: Mapping[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_COUNTS = re.compile(r"\{([0-9]{1,5})(,([0-9]{0,5}))?\}")
_NAMED = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|u\{([0-9A-Fa-f]{1,6})\}|[pP]\{[^}]{1,64}\}")
"""What is named by its number, or by what Unicode says of it."""


class PatternRefused(Exception):
    """The pattern is none, says what no grammar can, or may be read in too many ways. The message quotes nothing."""


def size_of(pattern: str) -> int:
    """Return how much a pattern is, about: its rules, its steps, and its own reading. Raises `PatternRefused`."""
    if not 1 <= len(pattern) <= LONGEST_PATTERN:
        raise PatternRefused(f"a pattern must have 1 to {LONGEST_PATTERN} characters")
    parser = _Parser(pattern)
    return parser.size()


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the pattern: the positions at which it may begin and end, and whether it may be empty."""

    first: frozenset[int]
    last: frozenset[int]
    nullable: bool
    copies: int = 1


_EMPTY = _Part(frozenset(), frozenset(), nullable=True)


class _Parser:
    def __init__(self, pattern: str) -> None:
        # The anchors say that nothing comes before or after. Engines that need them refuse a pattern without.
        self._text = pattern.removeprefix("^")
        self._at = 0
        self._depth = 0
        self._read: list[_Ranges] = []
        """What each position reads."""
        self._next: list[set[int]] = []
        """The positions that may follow each."""
        self._copies = 0
        self._compared = 0
        """How many ranges were gone through to find what is ambiguous."""

    def size(self) -> int:
        whole = self._alternatives()
        if self._at < len(self._text):
            raise PatternRefused("a pattern has a parenthesis too many")
        steps = sum(map(len, self._next))
        if steps > MOST_STEPS:
            raise PatternRefused(f"a pattern has more than {MOST_STEPS} steps")
        self._require_decided(whole)
        return self._copies + 4 * (len(self._text) + steps + self._compared)

    def _alternatives(self) -> _Part:
        parts = [self._sequence()]
        while self._peek("|"):
            self._at += 1
            parts.append(self._sequence())
        return _Part(
            frozenset[int]().union(*(part.first for part in parts)),
            frozenset[int]().union(*(part.last for part in parts)),
            any(part.nullable for part in parts),
            sum(part.copies for part in parts),
        )

    def _sequence(self) -> _Part:
        whole, copies = _EMPTY, 0
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            part = self._repeated(self._atom())
            copies += part.copies
            if not part.first:
                continue  # Nothing is read there.
            self._follow(whole.last, part.first)
            whole = _Part(
                whole.first | part.first if whole.nullable else whole.first,
                whole.last | part.last if part.nullable else part.last,
                whole.nullable and part.nullable,
            )
        return _Part(whole.first, whole.last, whole.nullable, max(1, copies))

    def _atom(self) -> _Part:
        character = self._text[self._at]
        if character == "(":
            return self._group()
        if character in "*+?{":
            raise PatternRefused("a pattern repeats what is not there")
        if character == "[":
            return self._position(self._class())
        self._at += 1
        if character == "\\":
            return self._position(self._escape())
        if character == "$" and self._at == len(self._text):
            return _EMPTY
        return self._position(_DOT if character == "." else _one(ord(character)))

    def _group(self) -> _Part:
        self._at += 1
        if self._peek("?"):
            if not self._text.startswith("?:", self._at):
                raise PatternRefused("a pattern must not look ahead or behind")
            self._at += 2
        self._depth += 1
        if self._depth > DEEPEST_GROUP:
            raise PatternRefused(f"a pattern has groups more than {DEEPEST_GROUP} deep")
        part = self._alternatives()
        if not self._peek(")"):
            raise PatternRefused("a pattern lacks a parenthesis")
        self._at += 1
        self._depth -= 1
        return part

    def _repeated(self, part: _Part) -> _Part:
        """Read what says how often a part comes, if anything does."""
        if self._at >= len(self._text) or self._text[self._at] not in "*+?{":
            return part
        if part is _EMPTY:
            raise PatternRefused("a pattern repeats what is not there")
        least, most = self._counts()
        if self._peek("?"):
            # A lazy one matches no other texts; to an engine it may be another repetition, of none or one.
            self._at += 1
            least = 0
        if self._at < len(self._text) and self._text[self._at] in "*+?{":
            raise PatternRefused("a pattern says twice how often something is repeated")
        again = most is None or most > 1
        if again and most is not None and part.nullable:
            raise PatternRefused("a pattern counts what may be empty")
        if again and any(self._next[position] & part.first for position in part.last):
            raise PatternRefused("a pattern repeats what repeats already")
        copies = part.copies * max(1, least if most is None else most)
        if copies > MOST_COPIES:
            raise PatternRefused(f"a pattern repeats something more than {MOST_COPIES} times")
        self._copies += copies
        # Of one position exactly so many come: it is never in doubt which is the last.
        if again and not (least == most and len(part.first) == 1 and part.first == part.last):
            self._follow(part.last, part.first)
        return _Part(part.first, part.last, part.nullable or least == 0, copies)

    def _counts(self) -> tuple[int, int | None]:
        sign = self._text[self._at]
        if sign != "{":
            self._at += 1
            return _SIGNS[sign]
        counts = _COUNTS.match(self._text, self._at)
        if counts is None:
            raise PatternRefused("a pattern counts in another form than {n}, {n,} or {n,m}")
        self._at = counts.end()
        least = int(counts[1])
        most = least if counts[2] is None else int(counts[3]) if counts[3] else None
        if most is not None and most < least:
            raise PatternRefused("a pattern counts backwards")
        return least, most

    def _position(self, read: _Ranges) -> _Part:
        if len(self._read) == MOST_POSITIONS:
            raise PatternRefused(f"a pattern reads at more than {MOST_POSITIONS} places")
        self._read.append(read)
        self._next.append(set())
        here = frozenset({len(self._read) - 1})
        return _Part(here, here, nullable=False)

    def _class(self) -> _Ranges:
        self._at += 1
        negated = self._peek("^")
        self._at += negated
        ranges: set[tuple[int, int]] = set()
        while not self._peek("]"):
            low = self._member()
            if self._peek("-") and not self._text.startswith("-]", self._at):
                self._at += 1
                low = _between(low, self._member())
            ranges.update(low)
        self._at += 1
        outside = _complement(ranges)
        # Each character once: all ranges are compared with all that they may stand beside.
        return outside if negated else _complement(outside)

    def _member(self) -> _Ranges:
        if self._at >= len(self._text):
            raise PatternRefused("a pattern lacks a bracket")
        character = self._text[self._at]
        self._at += 1
        return self._escape() if character == "\\" else _one(ord(character))

    def _escape(self) -> _Ranges:
        if self._at >= len(self._text):
            raise PatternRefused("a pattern ends within an escape")
        character = self._text[self._at]
        if character in "xupP" and (named := _NAMED.match(self._text, self._at)) is not None:
            self._at = named.end()
            return _one(min(int(named[named.lastindex], 16), _LAST)) if named.lastindex else _ANY
        self._at += 1
        if character in "bBk" or character.isdigit():
            raise PatternRefused("a pattern must not look ahead or behind")
        if (ranges := _CLASSES.get(character.lower())) is not None:
            return _complement(ranges) if character.isupper() else ranges
        if character in _CONTROLS:
            return _one(_CONTROLS[character])
        return _ANY if character.isalpha() else _one(ord(character))

    def _peek(self, character: str) -> bool:
        return self._text.startswith(character, self._at)

    def _follow(self, before: frozenset[int], after: frozenset[int]) -> None:
        for position in before:
            self._next[position] |= after

    def _require_decided(self, whole: _Part) -> None:
        ambiguous = 0
        beginnings: list[tuple[int | None, Collection[int]]] = [(None, whole.first), *enumerate(self._next)]
        for position, after in beginnings:
            for one, other in self._undecided(after):
                ambiguous += 1
                if ambiguous > MOST_AMBIGUOUS:
                    raise PatternRefused("a pattern may be read in too many ways")
                if position is not None and self._leads(one, position) and self._leads(other, position):
                    raise PatternRefused("a pattern may be read in ever more ways")

    def _undecided(self, positions: Collection[int]) -> Iterator[tuple[int, int]]:
        """Give the pairs that one character may lead to."""
        ranges = sorted((low, high, position) for position in positions for low, high in self._read[position])
        self._compared += len(ranges)
        open_until: list[tuple[int, int]] = []
        seen: set[tuple[int, int]] = set()
        for low, high, position in ranges:
            open_until = [(end, other) for end, other in open_until if end >= low]
            for _, other in open_until:
                pair = (min(position, other), max(position, other))
                if other != position and pair not in seen:
                    seen.add(pair)
                    yield pair
            open_until.append((high, position))

    def _leads(self, start: int, target: int) -> bool:
        seen, waiting = {start}, [start]
        while waiting:
            position = waiting.pop()
            if position == target:
                return True
            new = self._next[position] - seen
            seen |= new
            waiting += new
        return False


def _one(code: int) -> _Ranges:
    return ((code, code),)


def _between(low: _Ranges, high: _Ranges) -> _Ranges:
    """A range; beside a class, such as that of all digits, a hyphen is one."""
    if not all(len(end) == 1 and end[0][0] == end[0][1] for end in (low, high)):
        return (*low, *_one(ord("-")), *high)
    if low > high:
        raise PatternRefused("a pattern has a range that runs backwards")
    return ((low[0][0], high[0][0]),)


def _complement(ranges: Collection[tuple[int, int]]) -> _Ranges:
    found: list[tuple[int, int]] = []
    low = 0
    for start, end in sorted(ranges):
        if start > low:
            found.append((low, start - 1))
        low = max(low, end + 1)
    return (*found, (low, _LAST)) if low <= _LAST else tuple(found)
