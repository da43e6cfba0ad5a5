"""Which regular expressions reach an engine: those that are read in few ways, whatever is read."""

from __future__ import annotations

import pytest

from services.node.patterns import LONGEST_PATTERN, PatternRefused, size_of

USUAL = [
    r"^\d{4}-\d{2}-\d{2}$",
    r"^[a-z0-9]+(-[a-z0-9]+)*$",
    r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$",
    r"^[\w-\.]+@([\w-]+\.)+[\w-]{2,4}$",
    r"^https?://.*$",
    r"^(?:[01]\d|2[0-3]):[0-5]\d$",
    r"^[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}$",
    r"^[A-Z]{2}[A-Z0-9]{9}[0-9]$",
    r"^#[0-9a-fA-F]{6}$",
    r"^\+?[1-9]\d{1,14}$",
    r"^(GET|PUT|POST|PATCH|DELETE)$",
    r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    r"^[^\s]+$",
    r"^\p{L}+$",
    r"^.*?$",
    r"^(.|\n)*$",
    r"^-?\d+(\.\d+)?([eE][+-]?\d+)?$",
    r"^a|b$",
    r"[a-z]+",
    r"^$",
    r"^\x41\u0042\u{43}$",
    r"^\$\{[A-Z_]+\}$",
]


@pytest.mark.parametrize("pattern", USUAL)
def test_what_is_usual_is_taken(pattern: str) -> None:
    assert size_of(pattern) < 2000


@pytest.mark.parametrize(
    "pattern",
    [
        "^(-|-){64}$",
        "^(-|-)*$",
        "^(a+)+$",
        "^(a*)*$",
        "^(a+){3}$",
        "^(a*b*)*$",
        "^([a-z]+-?)+$",
        "^(a|aa)+$",
        "^(.*)*x$",
        "^a*a*a*a*a*$",
        "^(a?){30}$",
        "^" + "a?" * 30 + "$",
        "^" + "(a|ab)(c|bc)" * 4 + "$",
        r"^(\d|[0-9])+$",
        r"^([^a]|b)+$",
        r"^(.|\w)*$",
    ],
)
def test_what_is_read_in_ever_more_ways_is_refused(pattern: str) -> None:
    with pytest.raises(PatternRefused, match=r"ways|repeats what repeats|may be empty"):
        size_of(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "^*$",
        "^{3}$",
        "^+a$",
        "^a|*b$",
        "^(*a)$",
        "^(?:?)$",
        "^a**$",
        "^a{2}{3}$",
        "^(a$",
        "^a)$",
        "^[a$",
        "^a\\",
        "^a{$",
        "^a{,3}$",
        "^a{3,2}$",
        "^[z-a]$",
        r"^(a)\1$",
        r"^\ba$",
        "^(?=a)*$",
        "^(?!a)b$",
        "^(?<=a)b$",
        "^(?<name>a)$",
    ],
    ids=ascii,
)
def test_what_is_none_or_looks_elsewhere_is_refused(pattern: str) -> None:
    with pytest.raises(PatternRefused):
        size_of(pattern)


@pytest.mark.parametrize(
    ("fits", "beyond"),
    [
        ("a" * 256, "a" * 257),
        ("[" + "a" * (LONGEST_PATTERN - 2) + "]", "[" + "a" * (LONGEST_PATTERN - 1) + "]"),
        ("(" * 16 + "a" + ")" * 16, "(" * 17 + "a" + ")" * 17),
        ("a{2000}", "a{2001}"),
        ("(ab){0,1000}", "(ab){0,1001}"),
        ("(a{10}b){100}", "(a{10}b){200}"),
        ("a{2000,}", "a{2001,}"),
    ],
    ids=["places", "characters", "groups", "exactly", "at most", "one within the other", "at least"],
)
def test_each_bound_holds(fits: str, beyond: str) -> None:
    size_of(fits)
    with pytest.raises(PatternRefused):
        size_of(beyond)


def test_alternatives_that_lead_everywhere_are_bounded() -> None:
    letters = [chr(0x4E00 + number) for number in range(33)]
    size_of(f"^({'|'.join(letters[:32])})*$")
    with pytest.raises(PatternRefused, match="steps"):
        size_of(f"^({'|'.join(letters)})*$")


WITHIN = "".join(f"{chr(0x4E00 + number)}-{chr(0x5E00 - number)}" for number in range(160))


@pytest.mark.parametrize(
    ("often", "once"),
    [("a" * 500, "a"), ("ab" * 250, "ab"), (r"\S" * 250, r"\S"), ("^" + "a" * 499, "^a"), (WITHIN, WITHIN[:3])],
    ids=["a character", "several", "a class", "all others", "one within the other"],
)
def test_a_class_is_compared_as_what_it_reads_however_often_it_says_so(often: str, once: str) -> None:
    assert size_of(f"[{often}]+") - size_of(f"[{once}]+") == 4 * (len(often) - len(once))


def test_what_takes_long_to_read_is_large() -> None:
    """Whoever adds up sizes has counted that, too: characters, steps, and the ranges that are compared."""
    letters = [chr(0x4E00 + 2 * number) for number in range(300)]
    many = f"[{''.join(letters[:200])}]"
    assert size_of("a" * 250) > 250
    assert size_of("[" + "a" * 500 + "]") > 500
    assert size_of("a" + "()" * 250) > 500
    assert size_of(f"(?:{'|'.join(letters[200:])}){many}") > 100 * 200


def test_a_refusal_quotes_nothing() -> None:
    for pattern in ("(secret|secret)*", "secret{9999}", "[secret", "(?=secret)"):
        with pytest.raises(PatternRefused) as refused:
            size_of(pattern)
        assert "secret" not in str(refused.value)
