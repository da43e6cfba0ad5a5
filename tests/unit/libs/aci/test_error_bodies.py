from __future__ import annotations

import json

import pytest

from libs.aci.error_bodies import as_anthropic, error_body
from libs.aci.sse import Protocol


@pytest.mark.parametrize("protocol", [Protocol.CHAT, Protocol.RESPONSES])
def test_openais_clients_read_one_form(protocol: Protocol) -> None:
    assert json.loads(error_body("unauthorized", "no key", protocol)) == {
        "error": {"message": "no key", "type": "unauthorized", "code": None, "param": None}
    }


@pytest.mark.parametrize(
    ("error_type", "named"),
    [
        ("unauthorized", "authentication_error"),
        ("not_found", "not_found_error"),
        ("rate_limited", "rate_limit_error"),
        ("request_too_large", "request_too_large"),
        ("service_unavailable", "overloaded_error"),
        ("upstream_error", "api_error"),
        ("invalid_request_error", "invalid_request_error"),
        ("upstream_verification_failed", "upstream_verification_failed"),
        ("session_not_accepted", "session_not_accepted"),
        ("e2ee_unsupported_endpoint", "e2ee_unsupported_endpoint"),
    ],
)
def test_anthropics_clients_read_theirs_and_what_aci_defines_keeps_its_type(error_type: str, named: str) -> None:
    read = json.loads(error_body(error_type, "why", Protocol.MESSAGES))
    assert read == {"type": "error", "error": {"type": named, "message": "why", "code": None, "param": None}}


def test_an_engines_refusal_gets_anthropics_form() -> None:
    given = b'{"error":{"code":400,"message":"no content","type":"invalid_request_error"}}'
    read = json.loads(as_anthropic(given))
    assert read["type"] == "error"
    assert (read["error"]["type"], read["error"]["message"]) == ("invalid_request_error", "no content")


def test_a_refusal_that_is_in_it_already_stays_as_it_is() -> None:
    given = b'{ "type": "error", "error": {"type": "not_found_error", "message": "none"} }'
    assert as_anthropic(given) is given


@pytest.mark.parametrize("given", [b"", b"no json", b"[]", b'{"error":"text"}', b'{"detail":[]}', b"[" * 100_000])
def test_what_is_in_no_form_says_no_more_than_that_it_was_refused(given: bytes) -> None:
    read = json.loads(as_anthropic(given))
    assert (read["error"]["type"], read["error"]["message"]) == ("invalid_request_error", "the request was refused")
