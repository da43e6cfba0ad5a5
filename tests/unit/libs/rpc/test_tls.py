"""Which certificate a listener of several hosts shows, and what it tells whoever asks for none of them."""

from __future__ import annotations

import ssl

import pytest

from libs.rpc.tls import load_client_context, load_server_context, named_contexts, show
from tests.fakes.pki import ThrowawayCa

A, B, HERE = "a.example", "b.example", "localhost"


@pytest.fixture(scope="module")
def ca() -> ThrowawayCa:
    return ThrowawayCa()


def context_of(ca: ThrowawayCa, name: str) -> ssl.SSLContext:
    key, certificate = ca.leaf(None, name)
    context = load_server_context(key_pem=key, certificate_pem=certificate)
    context.set_alpn_protocols([name])
    return context


def handshake(listener: ssl.SSLContext, client: ssl.SSLContext, name: str | None) -> ssl.SSLObject:
    """Both sides in this process. Returns the client's, or raises what it was told."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    shaking = client.wrap_bio(to_client, to_server, server_hostname=name)
    serving = listener.wrap_bio(to_server, to_client, server_side=True)
    refused: ssl.SSLError | None = None
    for _ in range(3):
        try:
            shaking.do_handshake()
            return shaking
        except ssl.SSLWantReadError:
            pass
        try:
            serving.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            refused = error
    raise AssertionError("neither shook hands nor was refused") from refused


def names(session: ssl.SSLObject) -> str:
    return str(dict(session.getpeercert() or {})["subjectAltName"])


def test_each_host_has_its_certificate_and_its_protocols(ca: ThrowawayCa) -> None:
    contexts = {name: context_of(ca, name) for name in (A, B)}
    listener = named_contexts(contexts, None)
    for asked, shown in ((A, A), (B, B), (B.upper(), B)):
        client = load_client_context(ca_pem=ca.pem)
        client.set_alpn_protocols([A, B])
        session = handshake(listener, client, asked)
        assert names(session) == f"(('DNS', '{shown}'),)"
        assert session.selected_alpn_protocol() == shown
        assert session.version() == "TLSv1.3"


@pytest.mark.parametrize("default", [True, False])
def test_a_host_that_is_unknown_is_told_so_and_shown_no_certificate(ca: ThrowawayCa, default: bool) -> None:
    contexts = {name: context_of(ca, name) for name in (A, HERE)}
    listener = named_contexts(contexts, contexts[HERE] if default else None)
    for name in (B, f"x.{A}", f"{A}.example"):
        with pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"):
            handshake(listener, load_client_context(ca_pem=ca.pem), name)


def test_whoever_names_no_host_is_shown_the_default_or_told_to_name_one(ca: ThrowawayCa) -> None:
    client = load_client_context(ca_pem=ca.pem)
    client.check_hostname = False
    contexts = {name: context_of(ca, name) for name in (A, HERE)}
    assert names(handshake(named_contexts(contexts, contexts[HERE]), client, None)) == f"(('DNS', '{HERE}'),)"
    with pytest.raises(ssl.SSLError, match="MISSING_EXTENSION"):
        handshake(named_contexts(contexts, None), client, None)


def test_a_new_certificate_is_shown_from_then_on(ca: ThrowawayCa) -> None:
    contexts = {name: context_of(ca, name) for name in (A, B)}
    listener, client = named_contexts(contexts, None), load_client_context(ca_pem=ca.pem)
    before = [handshake(listener, client, name).getpeercert(binary_form=True) for name in (A, B)]
    key, certificate = ca.leaf(None, A)
    show(contexts[A], key_pem=key, certificate_pem=certificate)
    after = [handshake(listener, client, name).getpeercert(binary_form=True) for name in (A, B)]
    assert after[0] not in before
    assert after[1] == before[1]
