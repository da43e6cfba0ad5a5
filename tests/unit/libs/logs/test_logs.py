from __future__ import annotations

import json
import subprocess
import sys

_SCRIPT = """
import asyncio, logging, structlog
from libs import logs
from libs.errors import MeshError

class Refused(MeshError):
    reason = "REFUSED"

log = structlog.get_logger()  # Before configuring, as modules do.
logs.configure("router", "r1", json=True)
structlog.contextvars.bind_contextvars(method="/a.B/C")
log.info("started", port=1, prompt="PRIVATE", prompt_tokens=7, api_key="PRIVATE", key=b"PRIVATE",
         headers={"Authorization": "PRIVATE", "accept": "all"}, items=[{"content": "PRIVATE"}],
         detail="sent Bearer PRIVATE and -----BEGIN PRIVATE KEY-----\\nPRIVATE\\n-----END PRIVATE KEY-----")
try:
    try:
        raise ValueError("PRIVATE")
    except ValueError as error:
        raise Refused("for this reason") from error
except Refused:
    log.exception("failed")
try:
    int("PRIVATE")
except ValueError:
    logging.getLogger("elsewhere").exception("foreign %s", "Bearer PRIVATE")
log.debug("not shown")
for _ in range(3):
    log.info("by anybody", thinned=True)
"""


def _lines() -> list[dict[str, object]]:
    ran = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == ""
    assert "PRIVATE" not in ran.stderr.replace("-----BEGIN PRIVATE KEY-----", "")
    return [json.loads(line) for line in ran.stderr.splitlines()]


def test_nothing_private_reaches_the_log_and_everything_else_does() -> None:
    started, failed, foreign, thinned = _lines()
    assert (thinned["event"], "thinned" in thinned) == ("by anybody", False)
    assert started["service"] == "router"
    assert started["instance"] == "r1"
    assert started["method"] == "/a.B/C"
    assert started["level"] == "info"
    assert started["event"] == "started"
    assert started["port"] == 1
    assert started["prompt_tokens"] == 7
    assert started["key"] == "<7 bytes>"
    assert started["headers"] == {"Authorization": "[redacted]", "accept": "all"}
    assert "Refused: for this reason" in str(failed["exception"])
    assert "ValueError\nwhich led to:" in str(failed["exception"])
    assert 'File "<string>"' in str(failed["exception"])
    assert foreign["event"] == "foreign [redacted]"
    assert str(foreign["exception"]).endswith("ValueError")


_LOGGING_ON = """
import structlog
from libs import logs

log = structlog.get_logger()
logs.configure("node", "n1", json=True)
for number in range(2000):
    log.info("a line", number=number)
print("done", flush=True)
"""


def test_a_log_on_a_full_disk_ends_nothing() -> None:
    """Each write to /dev/full fails with ENOSPC (full(4))."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", _LOGGING_ON], stdout=subprocess.PIPE, stderr=full, timeout=60, check=False
        )
    assert done.stdout == b"done\n"
