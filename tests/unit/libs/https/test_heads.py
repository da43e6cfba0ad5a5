from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.https.heads import host_of, require_authority, split_target
from libs.https.unreadable import Unreadable


@pytest.mark.parametrize("name", ["localhost", "a.example:443", "127.0.0.1:8443", "[::1]", "[::1]:443", "a_b.example"])
def test_a_host_is_one_name_and_perhaps_a_port(name: str) -> None:
    assert require_authority([name]) == name


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("A.example:443", "a.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]:443", "::1"),
        ("[FE80::1]", "fe80::1"),
        ("a.example.:443", "a.example"),
    ],
)
def test_a_host_is_read_as_keysets_write_it(authority: str, host: str) -> None:
    assert host_of(authority) == host


@pytest.mark.parametrize(
    "given", [[], [""], ["a", "a"], ["a, b"], ["a b"], ["a@b"], ["a/b"], ["a?b"], ["a:123456"], ["[x]"], ["\xff"]]
)
def test_what_is_no_host_is_refused(given: list[str]) -> None:
    with pytest.raises(Unreadable):
        require_authority(given)


def test_a_target_is_split_and_its_path_stays_as_it_came() -> None:
    path, query = split_target("/v1/%6dodels?a=1&b=%20+&a=&c", "a")
    assert path == "/v1/%6dodels"
    assert query == (("a", "1"), ("b", "  "), ("a", ""), ("c", ""))


@pytest.mark.parametrize("target", ["https://a.example/x?y=1", "HTTPS://A.example/x?y=1"])
def test_an_absolute_target_is_read_if_it_names_the_host(target: str) -> None:
    path, query = split_target(target, "a.example")
    assert (path, query) == ("/x", (("y", "1"),))


@pytest.mark.parametrize(
    "target",
    ["", "x", "?x", "/a b", "/a\tb", "/\xe9", "/a#b", "https://a.example", "https://b.example/", "http://a.example/"],
)
def test_a_target_that_is_no_path_is_refused(target: str) -> None:
    with pytest.raises(Unreadable):
        split_target(target, "a.example")


@given(st.text(), st.text())
def test_any_target_is_a_path_or_refused(target: str, authority: str) -> None:
    try:
        path, _ = split_target(target, authority)
    except Unreadable:
        return
    assert path == "*" or path.startswith("/")
