"""The twenty faults by their numbers, what each must come to, and what tries it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.faults.ledger import (
    changed_bytes,
    deaths,
    failover,
    full_disk,
    killed,
    old_entries,
    power_loss,
    readers,
    routers,
    stream_faults,
)
from tests.faults.ledger.belonging import BELONGING, keyword_of
from tests.faults.ledger.stage import Run, by_itself, on_disk, on_ground


@dataclass(frozen=True, slots=True)
class Part:
    """One way of trying a fault."""

    name: str
    run: Run
    rounds: int
    """At length."""
    short: int
    """Rounds of the short form, which every run of the tests has; 0 where tests elsewhere are it."""
    batch: int
    """Rounds at a time: what is done again after an interruption at most."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One row."""

    number: int
    what: str
    passes_when: str
    parts: tuple[Part, ...] = ()

    @property
    def keyword(self) -> str:
        return keyword_of(self.number)

    @property
    def tests(self) -> tuple[str, ...]:
        """Tests elsewhere that belong to it."""
        return BELONGING.get(self.number, ())


FAULTS = (
    Fault(
        1,
        "the ledger is killed at random, under load",
        "everything acknowledged is there once, the second reading is sound, every released tree is a beginning",
        (Part("killed", on_ground(killed.ledger_killed), rounds=1000, short=1, batch=10),),
    ),
    Fault(
        2,
        "killed at each of its own writes, syncs, renames, removals and opens",
        "the same at each of them",
        (Part("deaths", on_disk(deaths.deaths), rounds=1000, short=6, batch=100),),
    ),
    Fault(
        3,
        "EIO at each of those",
        "a non-zero exit status; nothing acknowledged, signed or synced again afterwards; the next start has it all",
        (
            Part("errors", on_disk(deaths.input_output_errors), rounds=500, short=6, batch=100),
            Part("errors of the process", on_ground(killed.disk_failed), rounds=50, short=0, batch=10),
        ),
    ),
    Fault(
        4,
        "ENOSPC, EFBIG, a write that stops in its middle; then there is room",
        "no part of a frame is ever seen, and the log goes on by itself",
        (
            Part("full disks", on_disk(full_disk.full_disks), rounds=400, short=3, batch=50),
            Part("no room for the process", on_ground(killed.disk_filled), rounds=50, short=1, batch=10),
        ),
    ),
    Fault(
        5,
        "the power is cut: any part of what was not synced is there, sector by sector and name by name",
        "at least what was promised by then, never anything else, and the log goes on",
        (Part("images", on_disk(power_loss.images), rounds=10_000, short=24, batch=500),),
    ),
    Fault(
        6,
        "the active segment is cut at every byte of its last three frames, and what is owed at every byte",
        "exactly what was whole is left and the rest is kept, or exit status 4",
        (
            Part("cuts", on_disk(changed_bytes.cuts), rounds=5000, short=60, batch=500),
            Part("cuts of what is owed", on_disk(changed_bytes.cuts_of_what_is_owed), rounds=2000, short=60, batch=500),
        ),
    ),
    Fault(
        7,
        "one random bit is another, at every byte of every file",
        "each is found: refused, reported, or made anew",
        (Part("flips", on_disk(changed_bytes.flips), rounds=30_000, short=40, batch=2000),),
    ),
    Fault(
        8,
        "the last acknowledged frame is changed",
        "exit status 4",
        (Part("flips", on_disk(changed_bytes.flips_below_the_floor), rounds=1000, short=40, batch=500),),
    ),
    Fault(
        9,
        "nats-server is killed while everybody uses it",
        "everything acknowledged is there once; publishers send again by themselves and none waits for ever",
        (Part("killed", on_ground(killed.broker_killed), rounds=50, short=1, batch=10),),
    ),
    Fault(
        10,
        "nats-server's store is put back, lost, or damaged: numbers are used again",
        "it is noticed at the next connection and said; what came under such numbers is there; all is sent again",
        (Part("stores", on_ground(stream_faults.stores), rounds=60, short=3, batch=6),),
    ),
    Fault(
        11,
        "what is under way is delivered again and again, and consumers are removed",
        "everything is there once",
        (Part("redelivered", on_ground(stream_faults.redelivered), rounds=100, short=2, batch=20),),
    ),
    Fault(
        12,
        "everything old comes again: past the window, to a new stream, the index gone",
        "no new leaf, the old places, and the index made anew is the same",
        (
            Part("old entries", on_disk(old_entries.old_entries), rounds=1000, short=2, batch=1000),
            Part("old messages", on_ground(stream_faults.old_messages), rounds=20, short=1, batch=4),
        ),
    ),
    Fault(
        13,
        "a router is killed at each of its steps; one gives a number to two entries",
        "what it let go is there once and nothing denies it; of two entries one is there, and the log says so",
        (
            Part("routers killed", on_ground(routers.router_killed), rounds=1000, short=1, batch=40),
            Part("numbers given twice", on_ground(routers.number_given_twice), rounds=50, short=1, batch=10),
        ),
    ),
    Fault(
        14,
        "messages are removed before the ledger reads them",
        "every hole is said, and filled when the issuers send again",
        (Part("holes", on_ground(stream_faults.holes), rounds=20, short=1, batch=4),),
    ),
    Fault(
        15,
        "two ledgers on one folder, or one log in two places; one stands still and goes on later",
        "the second is refused; no size has two roots; what is stale changes nothing",
        (Part("second ledgers", on_ground(killed.second_ledger), rounds=50, short=1, batch=10),),
    ),
    Fault(
        16,
        "an older image of the disk is put back, whole and consistent",
        "exit status 4, by a witness",
    ),
    Fault(
        17,
        "whoever holds the log's keys rewrites an entry and all state",
        "a witness, a resume token and any holder of an older tree notice; both notes are evidence",
    ),
    Fault(
        18,
        "a bit changes in memory between computing and signing",
        "the auditor refuses: no tree is signed that the files do not bear out",
        (
            Part("flips on the way", on_disk(changed_bytes.flips_in_memory), rounds=2000, short=12, batch=200),
            Part("roots", on_disk(changed_bytes.roots_in_memory), rounds=256, short=16, batch=256),
        ),
    ),
    Fault(
        19,
        "members fall behind, are cut off, full, stopped and killed, under load",
        "no tree is out that no majority holds; whoever takes over extends every tree that was; readers go on",
        (Part("failover", by_itself(failover.failover), rounds=32, short=0, batch=8),),
    ),
    Fault(
        20,
        "readers break off and resume, others stand still; the ledger dies at each step of an erasure",
        "each index once and in order; memory does not grow; what is erased opens nowhere, and old proofs verify",
        (Part("readers", on_ground(readers.readers), rounds=1000, short=50, batch=500),),
    ),
)
