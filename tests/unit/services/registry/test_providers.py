"""A node's record at rest: read back as it was written, and nothing else is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from libs import jcs
from services.registry.providers import Engine, Load, Provider, ProviderRecordMalformed, decode

PROVIDER = Provider(
    spiffe_id="spiffe://mesh.test/node/one",
    endpoint="127.0.0.1:4000",
    models=(("smollm2-135m", "77" * 32),),
    evidence_digest="11" * 32,
    spki_sha256="22" * 32,
    session_id="33" * 32,
    lease_until_ms=1_800_000_000_000,
    load=Load(1, 2, 4, 125),
    draining=True,
    engine=Engine("vllm 0.11", "44" * 32),
    region="eu-north",
)


@pytest.mark.parametrize(
    "provider",
    [PROVIDER, replace(PROVIDER, load=Load(), engine=Engine(), region="", models=())],
    ids=["everything", "what an older node says"],
)
def test_a_record_is_read_as_it_was_written(provider: Provider) -> None:
    assert decode(provider.encode()) == provider


def test_a_cache_of_which_nothing_is_said_is_not_an_empty_one() -> None:
    assert decode(replace(PROVIDER, load=Load(kv_cache_permille=0)).encode()).load.kv_cache_permille == 0
    assert decode(replace(PROVIDER, load=Load()).encode()).load.kv_cache_permille is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("v", 2),
        ("v", "1"),
        ("spiffe_id", "spiffe://mesh.test/router/one"),
        ("spiffe_id", 7),
        ("endpoint", ""),
        ("models", {}),
        ("models", [{"id": "m"}]),
        ("evidence_digest", "zz" * 32),
        ("spki_sha256", "22"),
        ("session_id", None),
        ("lease_until_ms", -1),
        ("lease_until_ms", True),
        ("load", []),
        ("load", {"running": 0, "waiting": 0, "capacity": 2**32}),
        ("load", {"running": 0, "waiting": 0, "capacity": 1, "kv_cache_permille": 1001}),
        ("draining", "no"),
        ("engine", {"name": "\n", "arguments_sha256": ""}),
        ("region", "Europe"),
        ("more", 1),
    ],
)
def test_what_no_registry_of_this_version_wrote_is_malformed(name: str, value: Any) -> None:
    with pytest.raises(ProviderRecordMalformed):
        decode(jcs.dumps(jcs.loads_object(PROVIDER.encode()) | {name: value}))


@pytest.mark.parametrize("name", sorted(jcs.loads_object(PROVIDER.encode())))
def test_a_record_without_one_of_its_members_is_malformed(name: str) -> None:
    value = jcs.loads_object(PROVIDER.encode())
    del value[name]
    with pytest.raises(ProviderRecordMalformed):
        decode(jcs.dumps(value))


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{", b'{"v":1}', b"\xff"])
def test_what_is_no_object_is_malformed(data: bytes) -> None:
    with pytest.raises(ProviderRecordMalformed):
        decode(data)
