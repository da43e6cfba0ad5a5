"""Tests of other folders that belong to a fault, by its number. They are a part of its short form."""

from __future__ import annotations

from collections.abc import Mapping

_LEDGER = "tests/unit/services/ledger/"
_RECOVERY = f"{_LEDGER}test_recovery.py::test_"
_AUDITOR = f"{_LEDGER}test_auditor.py::test_"
_REWRITTEN = f"{_LEDGER}test_rewritten_history.py::test_"
_GROUP = f"{_LEDGER}test_group.py::test_"
_ATTACK = f"{_LEDGER}test_erasure_attack.py::test_"
_SEQUENCER = f"{_LEDGER}test_sequencer.py::test_"
_BREAKING = f"{_LEDGER}test_breaking.py::test_"
_COMMITTING = f"{_LEDGER}test_committing.py::test_"
_POSITION = f"{_LEDGER}test_position.py::test_"
_PROCESS = f"{_LEDGER}test_process.py::test_"
_DERIVED = f"{_LEDGER}test_derived.py::test_"
_CONSUME = "tests/unit/libs/events/test_consume.py::test_"
_VERIFY = "tests/unit/services/cli/test_ledger_verify.py::test_"
_FAILOVER = "tests/faults/test_ledger_failover.py::test_a_writer_that_is_cut_off_takes_nothing_with_it"
_PRUNING = "tests/faults/test_pruning.py::test_log_that_died_at_any_step_of_"

BELONGING: Mapping[int, tuple[str, ...]] = {
    1: (f"{_PROCESS}nothing_acknowledged_is_lost_when_the_ledger_is_killed",),
    2: (f"{_LEDGER}test_sealing.py::test_kill_at_any_write_of_a_start_a_commit_and_a_sealing_stop_loses_nothing",),
    3: (
        f"{_SEQUENCER}entry_that_could_not_be_made_durable_is_not_committed",
        f"{_BREAKING}process_ends_at_once_and_says_why",
    ),
    4: (
        f"{_SEQUENCER}failed_write_breaks_the_log_for_good_and_loses_nothing_promised",
        f"{_BREAKING}process_ends_at_once_though_its_last_words_find_no_room_either",
    ),
    6: (
        f"{_RECOVERY}truncation_at_any_byte_is_below_the_floor_or_cuts_nothing",
        f"{_RECOVERY}truncation_without_a_floor_leaves_exactly_the_whole_frames",
        f"{_RECOVERY}torn_tail_is_kept_and_cut_and_the_log_goes_on",
    ),
    7: (
        f"{_RECOVERY}flipped_bit_at_any_byte_of_a_sealed_segment_is_damage_with_its_place",
        f"{_RECOVERY}flipped_bit_at_any_byte_of_the_active_segment_is_found",
        f"{_RECOVERY}flipped_bit_anywhere_in_the_watermark_is_reported",
        f"{_RECOVERY}flipped_bit_anywhere_in_the_description_is_damage",
        f"{_RECOVERY}flipped_bit_anywhere_in_a_records_file_is_found_or_looks_torn",
        f"{_DERIVED}flipped_bit_at_any_byte_of_a_derived_file_is_noticed_and_the_file_made_anew",
        f"{_LEDGER}test_keyring.py::test_a_change_of_any_byte_is_damage",
    ),
    8: (f"{_PROCESS}damage_keeps_the_ledger_down_and_names_its_place",),
    10: (
        f"{_POSITION}a_number_that_was_used_again_is_a_rollback",
        f"{_POSITION}a_message_that_is_gone_is_a_rollback",
        f"{_POSITION}another_stream_is_a_new_source_read_from_its_first",
    ),
    11: (f"{_COMMITTING}a_resend_is_acknowledged_at_its_old_place",),
    12: (
        f"{_SEQUENCER}entry_that_is_logged_is_a_duplicate_at_its_index_also_after_a_restart",
        f"{_DERIVED}missing_or_foreign_file_is_made_anew",
    ),
    13: (
        f"{_COMMITTING}two_entries_under_one_number_are_a_conflict_and_the_first_one_stays",
        f"{_SEQUENCER}other_entry_under_a_logged_number_is_a_conflict",
    ),
    14: (
        f"{_CONSUME}what_the_stream_lost_is_a_gap",
        f"{_COMMITTING}lost_messages_are_said_in_the_log",
    ),
    15: (
        f"{_RECOVERY}second_process_is_locked_out",
        f"{_GROUP}who_is_no_member_or_comes_from_the_past_changes_nothing",
        _FAILOVER,
    ),
    16: (
        f"{_REWRITTEN}a_disk_that_was_put_back_does_not_start",
        f"{_RECOVERY}consistent_older_image_is_below_the_signed_size",
        f"{_RECOVERY}floor_that_others_know_is_held",
    ),
    17: (
        f"{_REWRITTEN}a_witness_catches_it_and_both_notes_are_kept",
        f"{_REWRITTEN}a_readers_resume_token_catches_it",
        f"{_REWRITTEN}whoever_holds_an_older_checkpoint_gets_no_proof_of_it",
        f"{_VERIFY}second_history_is_status_6_with_evidence_that_proves_alone",
    ),
    18: (
        f"{_AUDITOR}it_refuses_another_root_than_the_files",
        f"{_AUDITOR}it_refuses_after_any_byte_of_a_commit_was_flipped",
        f"{_LEDGER}test_proofs.py::test_hash_that_changed_in_memory_is_in_no_proof",
    ),
    19: (
        _FAILOVER,
        f"{_GROUP}without_a_majority_nothing_is_acknowledged_and_with_one_it_goes_on",
    ),
    20: (
        f"{_ATTACK}nothing_that_is_left_opens_an_erased_entry_and_all_proofs_verify",
        f"{_ATTACK}a_ledger_that_dies_at_a_write_of_an_erasure_finishes_it_at_its_next_start",
        f"{_PRUNING}pruning_starts_and_is_pruned_in_the_end",
        f"{_PRUNING}putting_back_starts_and_is_whole_in_the_end",
        f"{_LEDGER}test_pruned_process.py::test_ledger_on_a_pruned_log_serves_and_goes_on_and_takes_back_what_was_pruned",
        f"{_DERIVED}missing_or_foreign_file_is_made_anew",
    ),
}


def keyword_of(number: int) -> str:
    """By which pytest finds the tests of a fault: `pytest -k fault_07`."""
    return f"fault_{number:02}"
