"""What a field is bound to, to the byte; every part of it counts."""

from __future__ import annotations

from libs.aci.e2ee.binding import Binding

BINDING = Binding("a-suite", "mod\u00e8le", "AB" * 32, 1_750_000_000)


def test_a_requests_field() -> None:
    assert BINDING.of_request("messages.0.content").decode() == (
        '{"algo":"a-suite","field":"messages.0.content","model":"mod\u00e8le","nonce":"' + "AB" * 32 + '",'
        '"purpose":"aci.e2ee.request.v2","ts":1750000000}'
    )


def test_an_answers_field() -> None:
    assert BINDING.of_response("choices.0.text", "x").decode() == (
        '{"algo":"a-suite","field":"choices.0.text","id":"x","model":"mod\u00e8le","nonce":"' + "AB" * 32 + '",'
        '"purpose":"aci.e2ee.response.v2","ts":1750000000}'
    )
