"""What browsers are told: nothing by default, and never what would let a page use credentials of theirs."""

from __future__ import annotations

import pytest

from services.router.face.arrivals import Arrival, Fields
from services.router.face.origins import Origins
from services.router.face.settings import HttpSettings

HERE, ELSEWHERE = "https://chat.example.org", "https://elsewhere.example"


async def _read(limit: int, tenant_id: str) -> bytes:
    return b""


def arrival(origin: str | None, method: str = "GET", **headers: str) -> Arrival:
    named = {"origin": origin} if origin is not None else {}
    fields = {**named, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return Arrival(method, "/v1/models", Fields(()), Fields(fields.items()), _read, lambda: False)


def preflight(origin: str | None, **headers: str) -> Arrival:
    return arrival(origin, "OPTIONS", access_control_request_method="POST", **headers)


def test_by_default_nobody_elses_page_is_let_in() -> None:
    assert Origins(()).headers(arrival(HERE)) == {}
    assert Origins(()).preflight(preflight(HERE)) is None


def test_a_listed_origin_is_let_in_and_caches_keep_the_answer_apart() -> None:
    headers = Origins([HERE]).headers(arrival(HERE))
    assert (headers["Access-Control-Allow-Origin"], headers["Vary"]) == (HERE, "Origin")
    assert {"X-Receipt-Id", "X-Should-Retry"} <= set(headers["Access-Control-Expose-Headers"].split(", "))


@pytest.mark.parametrize("origin", [ELSEWHERE, None, "null", "https://chat.example.org.evil.example", HERE.upper()])
def test_another_origin_is_not(origin: str | None) -> None:
    origins = Origins([HERE])
    assert origins.headers(arrival(origin)) == {"Vary": "Origin"}
    assert origins.preflight(preflight(origin)) is None


def test_every_origin_is_let_in_without_being_named() -> None:
    origins = Origins(["*"])
    assert origins.headers(arrival(ELSEWHERE))["Access-Control-Allow-Origin"] == "*"
    assert origins.preflight(preflight(ELSEWHERE)) is not None


def test_a_preflight_is_told_what_it_may_send() -> None:
    asked = "authorization, content-type,x-stainless-os"
    reply = Origins([HERE]).preflight(preflight(HERE, access_control_request_headers=asked))
    assert reply is not None
    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers["Access-Control-Allow-Headers"] == asked
    assert "POST" in reply.headers["Access-Control-Allow-Methods"]


@pytest.mark.parametrize("asked", ["a\r\nSet-Cookie: x", "*", "a" * 65, ", ".join(["a"] * 65), ""])
def test_what_is_no_list_of_names_is_not_said_back(asked: str) -> None:
    reply = Origins([HERE]).preflight(preflight(HERE, access_control_request_headers=asked))
    assert reply is not None
    assert "Access-Control-Allow-Headers" not in reply.headers


def test_an_options_that_is_no_preflight_is_a_request_like_any_other() -> None:
    assert Origins(["*"]).preflight(arrival(HERE, "OPTIONS")) is None


def test_no_answer_lets_a_page_send_the_browsers_credentials() -> None:
    for allowed in (["*"], [HERE]):
        origins = Origins(allowed)
        reply = origins.preflight(preflight(HERE))
        assert reply is not None
        assert "Access-Control-Allow-Credentials" not in {**reply.headers, **origins.headers(arrival(HERE))}


@pytest.mark.parametrize("origin", ["", "null", "chat.example.org", HERE + "/", "https://*.example.org", "ftp://a"])
def test_what_is_no_origin_is_refused_at_start(origin: str) -> None:
    with pytest.raises(ValueError, match="allowed_origins"):
        HttpSettings("a:1", "a:2", allowed_origins=(origin,))
