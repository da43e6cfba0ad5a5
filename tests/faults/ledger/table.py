"""The twenty faults by their numbers, what each must come to, and what tries it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.faults.ledger import changed_bytes, deaths, full_disk, killed, power_loss
from tests.faults.ledger.stage import Run, on_disk, on_ground

_LEDGER = "tests/unit/services/ledger/"
_RECOVERY = f"{_LEDGER}test_recovery.py::test_"
_AUDITOR = f"{_LEDGER}test_auditor.py::test_"
_REWRITTEN = f"{_LEDGER}test_rewritten_history.py::test_"
_GROUP = f"{_LEDGER}test_group.py::test_"


@dataclass(frozen=True, slots=True)
class Part:
    """One way of trying a fault."""

    name: str
    run: Run
    rounds: int
    """At length."""
    short: int
    """Rounds of the short form, which every run of the tests has; 0 where another test of the table is it."""
    batch: int
    """Rounds at a time: what is done again after an interruption at most."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One row."""

    number: int
    what: str
    passes_when: str
    parts: tuple[Part, ...] = ()
    tests: tuple[str, ...] = ()
    """Tests elsewhere that belong to it: part of the short form, and run once at length."""

    @property
    def keyword(self) -> str:
        """By which pytest finds its tests: `pytest -k fault_07`."""
        return f"fault_{self.number:02}"


FAULTS = (
    Fault(
        1,
        "the ledger is killed at random, under load",
        "everything acknowledged is there once, the second reading is sound, every released tree is a beginning",
        (Part("killed", on_ground(killed.ledger_killed), 1000, 2, 20),),
        (f"{_LEDGER}test_process.py::test_nothing_acknowledged_is_lost_when_the_ledger_is_killed",),
    ),
    Fault(
        2,
        "killed at each of its own writes, syncs, renames, removals and opens",
        "the same at each of them",
        (Part("deaths", on_disk(deaths.deaths), 1000, 10, 100),),
        (f"{_LEDGER}test_sealing.py::test_kill_at_any_write_of_a_start_a_commit_and_a_sealing_stop_loses_nothing",),
    ),
    Fault(
        3,
        "EIO at each of those",
        "a non-zero exit status; nothing acknowledged, signed or synced again afterwards; the next start has it all",
        (
            Part("errors", on_disk(deaths.input_output_errors), 500, 10, 100),
            Part("errors of the process", on_ground(killed.disk_failed), 50, 1, 10),
        ),
        (
            f"{_LEDGER}test_sequencer.py::test_entry_that_could_not_be_made_durable_is_not_committed",
            f"{_LEDGER}test_breaking.py::test_process_ends_at_once_and_says_why",
        ),
    ),
    Fault(
        4,
        "ENOSPC, EFBIG, a write that stops in its middle; then there is room",
        "no part of a frame is ever seen, and the log goes on by itself",
        (
            Part("full disks", on_disk(full_disk.full_disks), 400, 6, 50),
            Part("no room for the process", on_ground(killed.disk_filled), 50, 1, 10),
        ),
        (
            f"{_LEDGER}test_sequencer.py::test_failed_write_breaks_the_log_for_good_and_loses_nothing_promised",
            f"{_LEDGER}test_breaking.py::test_process_ends_at_once_though_its_last_words_find_no_room_either",
        ),
    ),
    Fault(
        5,
        "the power is cut: any part of what was not synced is there, sector by sector and name by name",
        "at least what was promised by then, never anything else, and the log goes on",
        (Part("images", on_disk(power_loss.images), 10_000, 40, 500),),
    ),
    Fault(
        6,
        "the active segment is cut at every byte of its last three frames",
        "exactly the whole frames are left and the rest is kept, or exit status 4",
        (Part("cuts", on_disk(changed_bytes.cuts), 5000, 60, 500),),
        (
            f"{_RECOVERY}truncation_at_any_byte_is_below_the_floor_or_cuts_nothing",
            f"{_RECOVERY}truncation_without_a_floor_leaves_exactly_the_whole_frames",
            f"{_RECOVERY}torn_tail_is_kept_and_cut_and_the_log_goes_on",
        ),
    ),
    Fault(
        7,
        "one random bit is another, at every byte of every file",
        "each is found: refused, reported, or made anew",
        (Part("flips", on_disk(changed_bytes.flips), 30_000, 60, 2000),),
        (
            f"{_RECOVERY}flipped_bit_at_any_byte_of_a_sealed_segment_is_damage_with_its_place",
            f"{_RECOVERY}flipped_bit_at_any_byte_of_the_active_segment_is_found",
            f"{_RECOVERY}flipped_bit_anywhere_in_the_watermark_is_reported",
            f"{_RECOVERY}flipped_bit_anywhere_in_the_description_is_damage",
            f"{_RECOVERY}flipped_bit_anywhere_in_a_records_file_is_found_or_looks_torn",
            f"{_LEDGER}test_derived.py::"
            "test_flipped_bit_at_any_byte_of_a_derived_file_is_noticed_and_the_file_made_anew",
            f"{_LEDGER}test_keyring.py::test_a_change_of_any_byte_is_damage",
        ),
    ),
    Fault(
        8,
        "the last acknowledged frame is changed",
        "exit status 4",
        (Part("flips", on_disk(changed_bytes.flips_below_the_floor), 1000, 40, 500),),
        (f"{_LEDGER}test_process.py::test_damage_keeps_the_ledger_down_and_names_its_place",),
    ),
    Fault(
        9,
        "nats-server is killed while everybody uses it",
        "everything acknowledged is there once; publishers send again by themselves and none waits for ever",
        (Part("killed", on_ground(killed.broker_killed), 50, 2, 10),),
    ),
    Fault(
        15,
        "two ledgers on one folder, or one log in two places; one stands still and goes on later",
        "the second is refused; no size has two roots; what is stale changes nothing",
        (Part("second ledgers", on_ground(killed.second_ledger), 50, 1, 10),),
        (
            f"{_RECOVERY}second_process_is_locked_out",
            f"{_GROUP}who_is_no_member_or_comes_from_the_past_changes_nothing",
        ),
    ),
    Fault(
        16,
        "an older image of the disk is put back, whole and consistent",
        "exit status 4, by a witness or another member",
        tests=(
            f"{_REWRITTEN}a_disk_that_was_put_back_does_not_start",
            f"{_RECOVERY}consistent_older_image_is_below_the_signed_size",
            f"{_RECOVERY}floor_that_others_know_is_held",
        ),
    ),
    Fault(
        17,
        "whoever holds the log's keys rewrites an entry and all state",
        "a witness, a resume token and any holder of an older tree notice; both notes are evidence",
        tests=(
            f"{_REWRITTEN}a_witness_catches_it_and_both_notes_are_kept",
            f"{_REWRITTEN}a_readers_resume_token_catches_it",
            f"{_REWRITTEN}whoever_holds_an_older_checkpoint_gets_no_proof_of_it",
            "tests/unit/services/cli/test_ledger_verify.py::"
            "test_second_history_is_status_6_with_evidence_that_proves_alone",
        ),
    ),
    Fault(
        18,
        "a bit changes in memory between computing and signing",
        "the auditor refuses: no tree is signed that the files do not bear out",
        (Part("flips on the way", on_disk(changed_bytes.flips_in_memory), 2000, 30, 200),),
        (
            f"{_AUDITOR}it_refuses_another_root_than_the_files",
            f"{_AUDITOR}it_refuses_after_any_byte_of_a_commit_was_flipped",
            f"{_LEDGER}test_proofs.py::test_hash_that_changed_in_memory_is_in_no_proof",
        ),
    ),
)
