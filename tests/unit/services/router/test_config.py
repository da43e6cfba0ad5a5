"""The configuration: its tables, and files of before that had none."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from libs.client.attestation import LONGEST_KEYSET_SECONDS
from libs.config import ConfigInvalid, load
from services.router.config import Config
from services.router.routing.settings import RoutingSettings

DAY = 24 * 3600

REST = """
[member]
instance = "1"
trust_domain = "mesh.test"
listen = "127.0.0.1:0"
state_dir = "state"
guest_socket = "guest.sock"
seed_policy = "policy.json"
kms = ["127.0.0.1:1"]
kms_bootstrap = ["127.0.0.1:2"]
attestation_bootstrap = "127.0.0.1:3"
[events]
nats_url = "tls://127.0.0.1:4"
broker = "127.0.0.1:5"
outbox = "outbox"
"""
MESH = 'registry = ["127.0.0.1:6"]\nledger = "127.0.0.1:7"\n'
LISTENERS = 'https_listen = "127.0.0.1:8"\ngrpc_listen = "127.0.0.1:9"\n'
FLAT = """
max_body_bytes = 1
request_seconds = 2.0
keyset_days = 3
dns_names = ["a"]
ip_addresses = ["127.0.0.1"]
repo_url = "https://git.test"
ledger_seconds = 4.0
"""
TABLES = """
[http]
listen = "127.0.0.1:8"
grpc_listen = "127.0.0.1:9"
max_body_bytes = 1
request_seconds = 2.0
[keyset]
days = 3
dns_names = ["a"]
ip_addresses = ["127.0.0.1"]
repo_url = "https://git.test"
[receipts]
ledger_seconds = 4.0
"""


def read(folder: Path, own: str) -> Config:
    path = folder / "router.toml"
    path.write_text(MESH + own + REST)
    return load(path, Config)


def test_a_file_of_before_means_what_it_meant(tmp_path: Path) -> None:
    assert read(tmp_path, LISTENERS + FLAT) == read(tmp_path, TABLES)
    keyset = read(tmp_path, LISTENERS).keyset
    assert (keyset.lifetime, keyset.overlap) == (7 * DAY, DAY)
    assert read(tmp_path, TABLES).keyset.lifetime == 3 * DAY


def keyset(days: int | None = None, seconds: int | None = None, overlap: int | None = None) -> str:
    said = {"days": days, "lifetime_seconds": seconds, "overlap_seconds": overlap}
    members = "".join(f"{name} = {value}\n" for name, value in said.items() if value is not None)
    return f'[http]\nlisten = "127.0.0.1:8"\ngrpc_listen = "127.0.0.1:9"\n[keyset]\n{members}'


@pytest.mark.parametrize(
    ("own", "complaint"),
    [
        (keyset(days=32), "a keyset lives for 31 days at most"),
        (keyset(seconds=31 * DAY + 1), "a keyset lives for 31 days at most"),
        (keyset(days=0), "a keyset lives for 31 days at most"),
        (keyset(days=7, seconds=7 * DAY), "give one of them"),
        (keyset(seconds=1000, overlap=501), "at most half"),
        (keyset(seconds=1000, overlap=0), "must be positive"),
        (keyset(days=31, overlap=DAY), "the outward certificate would end"),
        (keyset() + 'domains = ["a", "a"]', "each host once"),
        (keyset() + 'dns_names = ["a"]\ndomains = ["a"]', "each host once"),
        (keyset() + 'domains = ["A.example"]', "in lower case"),
        (keyset() + 'domains = ["*.example"]', "without wildcards"),
        (keyset() + 'domains = ["a.example."]', "host names"),
        (keyset() + 'domains = ["127.0.0.1"]', "host names"),
        (keyset() + 'domains = ["::1"]', "host names"),
        (keyset() + f"domains = {[f'{number}.example' for number in range(17)]}", "16 names at most"),
        (keyset(seconds=900), "the overlap must be longer than a request may take"),
    ],
)
def test_a_keyset_that_no_client_could_rely_on_is_refused(tmp_path: Path, own: str, complaint: str) -> None:
    with pytest.raises(ConfigInvalid, match=complaint):
        read(tmp_path, own)


def test_a_keyset_may_live_for_as_long_as_clients_believe_one(tmp_path: Path) -> None:
    assert read(tmp_path, keyset(days=31)).keyset.lifetime == LONGEST_KEYSET_SECONDS


def test_a_file_without_a_routing_table_has_its_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, TABLES).routing == RoutingSettings()
    assert read(tmp_path, TABLES + "[routing]\nqueue_length = 0\n").routing == RoutingSettings(queue_length=0)


def test_the_template_says_the_defaults() -> None:
    template = tomllib.loads((Path(__file__).parents[4] / "deploy" / "config" / "router.toml").read_text())
    assert template["routing"] == dataclasses.asdict(RoutingSettings())


@pytest.mark.parametrize(
    ("own", "complaint"),
    [
        ("max_body_bytes = 1\n" + TABLES, "max_body_bytes: is http.max_body_bytes now, which is there, too"),
        ('keyset = "x"\nkeyset_days = 3\n' + LISTENERS, "keyset: must be a table"),
        ("keyset_days = 3.5\n" + LISTENERS, "keyset.days: must be an integer"),
        ("", "http: missing"),
        (TABLES.replace("max_body_bytes = 1", "max_connections = 0"), "http.max_connections must be positive"),
        (TABLES.replace("max_body_bytes = 1", "max_grpc_calls = 0"), "http.max_grpc_calls must be positive"),
        (TABLES.replace("max_body_bytes = 1", "stall_seconds = -1.0"), "http.stall_seconds must be positive"),
        (TABLES + "[routing]\nbreaker_failures = 0\n", "routing: breaker_failures must be at least 1"),
        (TABLES + "[routing]\nqueue_length = -1\n", "routing: breaker_failures must be at least 1, queue_length at"),
        (TABLES + "[routing]\nqueue_factor = nan\n", "routing: queue_factor must be over 0"),
        (TABLES + "[routing]\naffinity_slack = -0.1\n", "routing: queue_factor must be over 0, affinity_slack at"),
        (TABLES + "[routing]\nslow_factor = 0.5\n", "routing: slow_factor must be at least 1"),
        (TABLES + "[routing]\nidle_seconds = 0\n", "routing: times must be over 0 seconds"),
        (TABLES + "[routing]\nfirst_byte_seconds = nan\n", "routing: times must be over 0 seconds"),
        (TABLES.replace('listen = "127.0.0.1:8"\n', "", 1), "http.listen: missing"),
    ],
)
def test_what_makes_no_sense_refuses_to_start(tmp_path: Path, own: str, complaint: str) -> None:
    with pytest.raises(ConfigInvalid) as refusal:
        read(tmp_path, own)
    assert complaint in str(refusal.value)
