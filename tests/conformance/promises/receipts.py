"""Every refusal and every abnormal end leaves exactly one effective receipt, which verifies and says what happened."""

from __future__ import annotations

from collections.abc import Mapping

from tests.conformance.promises.row import Row

_EXCHANGE = "unit/services/router/exchange/"
_RUNNING = f"{_EXCHANGE}test_running.py::test_"
_PASSING = f"{_EXCHANGE}test_passing.py::test_"
_READING = "unit/services/router/test_reading.py::test_"
_PUT_OFF = f"{_EXCHANGE}test_put_off.py::test_"
_LEAVING = f"{_EXCHANGE}test_leaving.py::test_"
_RETRYING = f"{_EXCHANGE}test_retrying.py::test_"
_SHARES = f"{_EXCHANGE}test_shares.py::test_"
_WAITING = f"{_EXCHANGE}test_waiting.py::test_"
_MEANWHILE = f"{_EXCHANGE}test_meanwhile.py::test_"
_WHOLE = f"{_EXCHANGE}test_whole_answers.py::test_"
_NOT_TAKEN = f"{_EXCHANGE}test_not_taken.py::test_"
_ONE = f"{_EXCHANGE}test_one_receipt.py::test_"
_WHY = f"{_RUNNING}a_refusal_has_a_receipt_that_says_why"
_NOT_NOW = f"{_PUT_OFF}what_refuses_before_anything_is_done_leaves_one_receipt_once_it_can_be_logged"
_SEALED = f"{_ONE}what_came_encrypted_and_is_refused"
_HTTPS = "contract/test_router_https.py::test_"
_HTTP2 = "contract/test_router_http2.py::test_"
_HOSTILE = "contract/test_router_hostile_http2.py::test_"
_GRPC = "contract/test_router_grpc.py::test_"
_DOOR = "contract/test_router_grpc_door.py::test_"
_ABANDONED = "contract/test_router_abandoned.py::test_"
_ENDPOINTS = "contract/test_router_endpoints.py::test_"
_CONNECTIONS = "contract/test_router_connections.py::test_"
_AWAY = "faults/test_ledger_away.py::test_"
_ENGINES = "mesh/test_failing_engines.py::test_a_stream_whose_engine_fails_ends_with_an_error_and_one_receipt"
_PUBLISH = "unit/libs/events/test_publish.py::test_"

REFUSALS: tuple[Row, ...] = (
    Row("the body is malformed", "REQUEST_INVALID", f"{_WHY}[malformed]"),
    Row("the body has too many JSON values", "BODY_VALUES_TOO_MANY", f"{_WHY}[many values]"),
    Row("it names a cache salt of its own", "REQUEST_INVALID", f"{_WHY}[cache salt]"),
    Row("its bound is no number in digits", "BOUND_MALFORMED", f"{_WHY}[bound in another form]"),
    Row(
        "its body breaks off in its framing",
        "REQUEST_INVALID",
        f"{_HTTPS}a_body_that_cannot_be_read_is_an_error_in_time[broken later]",
    ),
    Row(
        "it asks for a response to be kept",
        "REQUEST_INVALID",
        f"{_ENDPOINTS}a_response_that_would_be_kept_is_refused_with_a_receipt",
    ),
    Row(
        "its id is none, over gRPC",
        "REQUEST_ID_MALFORMED",
        f"{_GRPC}a_request_id_that_is_none_is_refused_with_a_receipt",
    ),
    Row(
        "it names an endpoint that there is not, over gRPC",
        "ENDPOINT_NOT_SUPPORTED",
        f"{_GRPC}an_endpoint_that_is_not_served_is_refused_with_a_receipt",
    ),
    Row(
        "it asks for encryption, over gRPC",
        "REQUEST_INVALID",
        f"{_GRPC}whoever_wants_to_be_encrypted_is_not_answered_without",
    ),
    Row("the model is unknown", "MODEL_NOT_FOUND", f"{_WHY}[unknown model]"),
    Row(
        "the key is not for this model",
        "MODEL_NOT_FOUND",
        f"{_RUNNING}a_key_for_something_else_gets_nothing_forwarded_and_a_receipt[change1-404-not_found_error]",
    ),
    Row(
        "the key is not for this endpoint",
        "KEY_NOT_SCOPED",
        f"{_RUNNING}a_key_for_something_else_gets_nothing_forwarded_and_a_receipt[change0-403-key_not_scoped]",
    ),
    Row(
        "nobody offers the endpoint for the model",
        "ENDPOINT_NOT_OFFERED",
        f"{_ENDPOINTS}an_endpoint_that_no_node_offers_is_refused_with_a_receipt",
    ),
    Row("it pins a session that nobody has", "SESSION_NOT_ACCEPTED", f"{_WHY}[another session pinned]"),
    Row("the body is too large", "BODY_TOO_LARGE", f"{_HTTPS}a_body_over_the_limit_is_refused"),
    Row(
        "the body is too large, over gRPC", "BODY_TOO_LARGE", f"{_GRPC}a_body_over_the_limit_is_refused_with_a_receipt"
    ),
    Row(
        "the body does not come",
        "BODY_TOO_SLOW",
        f"{_HTTPS}a_body_that_cannot_be_read_is_an_error_in_time[never ends]",
    ),
    Row(
        "there is no room for its body",
        "BODIES_BUSY",
        f"{_CONNECTIONS}bodies_have_one_room_and_whoever_comes_when_it_is_full_is_told_when_to_come_again",
    ),
    Row(
        "there is no room for its body, over gRPC",
        "BODIES_BUSY",
        f"{_GRPC}a_tenants_bodies_have_their_part_of_the_room_and_leave_the_others_theirs",
    ),
    Row(
        "its time is over before its body can be read",
        "BODIES_BUSY",
        f"{_READING}whose_time_is_over_before_its_body_can_be_read_is_told_so_with_a_receipt",
    ),
    Row("the body is encoded", "CONTENT_ENCODING_NOT_SUPPORTED", f"{_HTTPS}a_body_that_is_encoded_is_refused"),
    Row("encrypted: a header is missing", "E2EE_HEADER_MISSING", f"{_SEALED}[e2ee_header_missing]"),
    Row("encrypted: another version", "E2EE_INVALID_VERSION", f"{_SEALED}[e2ee_invalid_version]"),
    Row("encrypted: its nonce is none", "E2EE_INVALID_NONCE", f"{_SEALED}[e2ee_invalid_nonce]"),
    Row("encrypted: its time is far", "E2EE_INVALID_TIMESTAMP", f"{_SEALED}[e2ee_invalid_timestamp]"),
    Row("encrypted: to a key of nobody", "E2EE_MODEL_KEY_MISMATCH", f"{_SEALED}[e2ee_model_key_mismatch]"),
    Row("encrypted: with no key of its client's", "E2EE_INVALID_PUBLIC_KEY", f"{_SEALED}[e2ee_invalid_public_key]"),
    Row("encrypted: without a model", "E2EE_INVALID_PAYLOAD_MODEL", f"{_SEALED}[e2ee_invalid_payload_model]"),
    Row("encrypted: it cannot be opened", "E2EE_DECRYPTION_FAILED", f"{_SEALED}[e2ee_decryption_failed]"),
    Row("encrypted: where nothing is", "E2EE_UNSUPPORTED_ENDPOINT", f"{_SEALED}[e2ee_unsupported_endpoint]"),
    Row("encrypted: part of it in clear", "E2EE_CONTENT_WITHOUT_PLACE", f"{_SEALED}[e2ee_content_without_place]"),
    Row("encrypted: it came before", "E2EE_REPLAY_DETECTED", f"{_ONE}what_came_encrypted_before[as it was]"),
    Row(
        "encrypted: it came before, and is to be answered under another client's key",
        "E2EE_REPLAY_DETECTED",
        f"{_ONE}what_came_encrypted_before[for another client's key]",
    ),
    Row(
        "encrypted: it came before, with its nonce in other letters",
        "E2EE_REPLAY_DETECTED",
        f"{_ONE}what_came_encrypted_before[with its nonce in other letters]",
    ),
    Row(
        "encrypted: no more can be remembered",
        "E2EE_REPLAY_MEMORY_FULL",
        f"{_ONE}what_came_encrypted_and_cannot_be_remembered",
    ),
    Row(
        "the tenant asks too often",
        "TENANT_RATE_EXCEEDED",
        f"{_ONE}a_tenant_beyond_its_limits[TENANT_RATE_EXCEEDED]",
    ),
    Row(
        "the tenant asks too much at once",
        "TENANT_CONCURRENCY_EXCEEDED",
        f"{_ONE}a_tenant_beyond_its_limits[TENANT_CONCURRENCY_EXCEEDED]",
    ),
    Row("the tenant has used its tokens", "TENANT_QUOTA_EXCEEDED", f"{_ONE}a_tenant_beyond_its_quota"),
    Row(
        "the tenant is revoked before a node has the prompt",
        "TENANT_REVOKED",
        f"{_MEANWHILE}a_prompt_goes_nowhere_that_it_may_not_go_any_more[the_tenant_is_revoked-tenant_revoked]",
    ),
    Row(
        "all nodes are full, and as many wait as may",
        "OVERLOADED",
        f"{_WAITING}who_finds_no_room_to_wait_is_refused_with_a_receipt_and_told_when_to_come_back",
    ),
    Row("it waited in vain", "OVERLOADED", f"{_WAITING}who_waits_in_vain_is_refused_with_a_receipt"),
    Row("all nodes are full, over gRPC", "OVERLOADED", f"{_GRPC}overload_is_an_answer_with_a_receipt"),
    Row(
        "all nodes run as much of the tenant's as they take of one",
        "TENANT_SHARE_TAKEN",
        f"{_SHARES}a_tenant_that_holds_its_share_of_every_node_is_told_to_come_back_with_a_receipt[stream]",
    ),
    Row(
        "three nodes do, of four",
        "TENANT_SHARE_TAKEN",
        f"{_SHARES}of_more_than_three_nodes_three_are_asked",
    ),
    Row(
        "it waited, and the router stops",
        "ROUTER_STOPPING",
        f"{_WAITING}who_waits_when_the_router_stops_is_refused_at_once_with_a_receipt_and_what_runs_ends",
    ),
    Row(
        "nobody verified can serve",
        "UPSTREAM_VERIFICATION_FAILED",
        f"{_RUNNING}without_a_verified_node_the_refusal_names_the_reason",
    ),
    Row(
        "no node is what policy demands",
        "TENANT_CONSTRAINTS_UNMET",
        f"{_RUNNING}a_tenant_whose_constraints_no_node_meets_is_refused_with_a_receipt_that_names_them",
    ),
    Row(
        "every node refuses it",
        "ENGINE_UNAVAILABLE",
        f"{_RUNNING}a_prompt_that_a_node_had_and_refused_was_forwarded",
    ),
    Row(
        "the node's answer is too large to be withheld",
        "ANSWER_UNDELIVERABLE",
        f"{_WHOLE}one_that_is_too_long_is_asked_of_no_other_node",
    ),
    Row(
        "the chosen node may not serve it any more",
        "NODE_NO_LONGER_SUITS",
        f"{_MEANWHILE}a_prompt_goes_nowhere_that_it_may_not_go_any_more[the_node_is_drained-node_no_longer_suits]",
    ),
    Row(
        "the chosen node has another key",
        "NODE_KEY_CHANGED",
        f"{_MEANWHILE}a_node_that_has_another_key_meanwhile_gets_no_prompt",
    ),
    Row(
        "the node of the pinned session has another key",
        "SESSION_NOT_ACCEPTED",
        f"{_MEANWHILE}a_pinned_session_that_its_node_has_replaced_meanwhile_gets_no_prompt",
    ),
    Row(
        "the nodes of all pinned sessions have other keys",
        "SESSION_NOT_ACCEPTED",
        f"{_MEANWHILE}pinned_sessions_that_are_all_replaced_meanwhile_are_said_not_to_be_accepted",
    ),
    Row("the outbox is full", "LEDGER_UNAVAILABLE", f"{_NOT_NOW}[full outbox]"),
    Row(
        "as much of the outbox is the tenant's as is left",
        "LEDGER_UNAVAILABLE",
        f"{_PUT_OFF}a_tenant_whose_share_of_the_outbox_is_full_is_refused_before_anything_is_done_and_nobody_else",
    ),
    Row("the policy is stale", "SERVICE_UNAVAILABLE", f"{_NOT_NOW}[stale policy]"),
)

ENDS: tuple[Row, ...] = (
    Row(
        "the client leaves in the middle of a stream, HTTP/1.1",
        "client_disconnected",
        f"{_HTTPS}a_client_that_leaves_mid_stream_stops_the_engine_and_leaves_one_receipt",
    ),
    Row(
        "the same, HTTP/2",
        "client_disconnected",
        f"{_HOSTILE}a_stream_that_is_given_up_stops_the_engine_and_leaves_the_connection",
    ),
    Row(
        "the same, gRPC",
        "client_disconnected",
        f"{_GRPC}a_client_that_leaves_mid_stream_stops_the_engine_and_leaves_one_receipt",
    ),
    Row(
        "the client leaves before an answer begins",
        "client_disconnected",
        f"{_LEAVING}a_client_that_leaves_before_the_head_leaves_one_receipt",
    ),
    Row(
        "the client leaves while its answer is made, which is to come in one message",
        "client_disconnected",
        f"{_WHOLE}a_client_that_leaves_ends_the_call",
    ),
    Row(
        "the client leaves while it waits for room",
        "client_disconnected",
        f"{_WAITING}a_client_that_leaves_while_it_waits_leaves_one_receipt_and_nothing_else",
    ),
    Row(
        "the client leaves while its tenant's vault is opened",
        "client_disconnected",
        f"{_LEAVING}a_client_that_leaves_while_the_vault_opens_leaves_one_receipt",
    ),
    Row(
        "the client leaves while its refusal is put off",
        "ledger_unavailable",
        f"{_PUT_OFF}a_client_that_leaves_while_its_refusal_is_put_off_leaves_one_receipt",
    ),
    Row(
        "the client leaves while the ledger is asked: amended",
        "not_released",
        f"{_LEAVING}a_client_that_leaves_while_the_ledger_is_asked_is_amended",
    ),
    Row(
        "the client took the head alone of what is logged: amended",
        "not_released",
        f"{_LEAVING}a_logged_response_of_which_only_the_head_was_taken_is_amended",
    ),
    Row(
        "the client leaves while the end is written: amended",
        "release_unknown",
        f"{_LEAVING}a_logged_end_that_was_not_written_to_its_end_is_amended_as_unknown",
    ),
    Row(
        "the client does not read, HTTP/1.1",
        "client_too_slow",
        f"{_HTTPS}a_client_that_does_not_read_is_said_to_be_slow_and_not_to_have_left",
    ),
    Row(
        "the client does not read, HTTP/2",
        "client_too_slow",
        f"{_HOSTILE}a_client_that_gives_no_window_is_said_to_be_slow",
    ),
    Row(
        "the client does not read, gRPC",
        "client_too_slow",
        f"{_DOOR}a_tenant_that_reads_nothing_is_said_to_be_slow_and_gives_its_place_back",
    ),
    Row(
        "the request's time is over at the node",
        "deadline_exceeded",
        f"{_RUNNING}a_node_that_has_no_time_left_is_not_said_to_have_failed",
    ),
    Row(
        "the client's own time is over, gRPC",
        "deadline_exceeded",
        f"{_GRPC}a_client_whose_time_is_over_is_not_said_to_have_left",
    ),
    Row(
        "the router stops in the middle of a stream, HTTP/1.1",
        "shutdown",
        f"{_HTTPS}a_router_that_stops_mid_stream_says_so_and_not_that_the_client_left",
    ),
    Row("the same, HTTP/2", "shutdown", f"{_HTTP2}a_router_that_stops_cuts_what_does_not_end_and_says_so"),
    Row(
        "the same, gRPC",
        "shutdown",
        f"{_GRPC}a_router_that_stops_mid_stream_says_so_and_not_that_the_client_left",
    ),
    Row(
        "the node is killed in the middle of its answer",
        "upstream_failed",
        f"{_ONE}a_node_that_is_killed_in_the_middle_of_its_answer",
    ),
    Row(
        "the node is killed before its answer, and no other can serve",
        "upstream_failed",
        f"{_ONE}a_node_that_is_killed_before_its_answer",
    ),
    Row("the engine is killed in a stream", "upstream_failed", f"{_ENGINES}[dies]"),
    Row("the engine hangs in a stream", "upstream_failed", f"{_ENGINES}[hangs]"),
    Row("the engine breaks off", "upstream_failed", f"{_RETRYING}a_node_that_breaks_off_is_not_replaced"),
    Row(
        "a stream falls silent",
        "upstream_failed",
        f"{_RETRYING}a_stream_that_stalls_ends_with_an_error_and_one_receipt",
    ),
    Row(
        "a buffered answer falls silent",
        "upstream_failed",
        f"{_RETRYING}a_buffered_answer_that_stalls_is_an_error_with_one_receipt",
    ),
    Row(
        "the node's receipt is over other bytes",
        "upstream_failed",
        f"{_RUNNING}a_node_whose_receipt_is_over_other_bytes_has_failed",
    ),
    Row(
        "the receipt beside an answer in one message does not cover it",
        "upstream_failed",
        f"{_WHOLE}a_receipt_that_does_not_cover_it_keeps_it_back",
    ),
    Row(
        "the node's receipt is too long to be logged",
        "upstream_failed",
        f"{_RUNNING}a_node_whose_receipt_is_too_long_to_be_logged_has_failed",
    ),
    Row(
        "what proves a foreign provider's answer is too long to be logged",
        "upstream_failed",
        "contract/foreign/test_vllm_proxy.py::"
        "test_an_answer_whose_signature_is_padded_beyond_what_can_be_logged_is_not_released",
    ),
    Row("one message lacks its head or its receipt", "upstream_failed", f"{_WHOLE}one_that_lacks_a_part_is_none"),
    Row(
        "an answer is larger than one message may be",
        "answer_undeliverable",
        f"{_WHOLE}one_that_is_too_long_is_asked_of_no_other_node",
    ),
    Row(
        "what the engine says cannot be encrypted",
        "answer_undeliverable",
        f"{_EXCHANGE}test_sealed.py::test_what_cannot_be_sealed_ends_a_stream",
    ),
    Row(
        "its client leaves before its large answer is read",
        "client_disconnected",
        f"{_PASSING}of_an_answer_whose_client_leaves_before_it_is_read_nothing_is_read",
    ),
    Row(
        "its time is over before its large answer can be read",
        "deadline_exceeded",
        f"{_PASSING}an_answer_whose_time_is_over_before_it_can_be_read_ends_so",
    ),
    Row(
        "an answer is larger than may be withheld",
        "answer_undeliverable",
        f"{_ONE}an_answer_that_is_larger_than_may_be_withheld",
    ),
    Row(
        "the tenant is revoked in the middle of its answer",
        "tenant_revoked",
        f"{_RUNNING}the_answer_of_a_tenant_who_is_revoked_meanwhile_is_cut",
    ),
    Row(
        "the tenant's vault cannot be opened",
        "ledger_unavailable",
        f"{_RUNNING}a_vault_that_cannot_be_opened_means_an_error_and_a_receipt_over_it",
    ),
    Row(
        "the ledger does not acknowledge a buffered answer: amended",
        "not_released",
        f"{_RUNNING}a_buffered_response_without_acknowledgement_is_an_error",
    ),
    Row(
        "the ledger does not acknowledge a stream: amended",
        "not_released",
        f"{_RUNNING}a_stream_without_acknowledgement_ends_in_an_error_and_the_amendment_says_so",
    ),
    Row(
        "the ledger does not acknowledge a refusal: amended",
        "not_released",
        f"{_RUNNING}a_refusal_without_acknowledgement_says_so",
    ),
    Row(
        "the log does not take the receipt of an answer or a refusal: another has its place",
        "ledger_unavailable",
        f"{_NOT_TAKEN}a_receipt_that_the_log_does_not_take_has_one_in_its_place",
    ),
    Row(
        "the log does not take the receipt of a stream: another has its place",
        "ledger_unavailable",
        f"{_NOT_TAKEN}a_stream_whose_receipt_the_log_does_not_take_has_one_in_its_place",
    ),
    Row(
        "the ledger's processes are stopped: amended",
        "not_released",
        f"{_AWAY}with_a_stopped_ledger_no_request_completes_and_the_amendment_says_so",
    ),
    Row(
        "the router is killed before the ledger acknowledged: amended at its next start",
        "not_released",
        f"{_PUBLISH}after_a_restart_the_same_bytes_go_out_and_open_receipts_are_amended",
    ),
    Row(
        "the router is killed while the end is written: amended at its next start",
        "release_unknown",
        f"{_PUBLISH}an_acknowledged_receipt_that_was_not_released_is_amended_as_unknown",
    ),
    Row(
        "the router stops while a receipt that waited is on its way",
        "ledger_unavailable",
        f"{_LEAVING}a_receipt_that_the_ledger_has_been_given_at_a_stop_is_logged_once",
    ),
    Row(
        "the same, and the ledger is away",
        "ledger_unavailable",
        f"{_LEAVING}a_receipt_that_the_ledger_has_been_given_at_a_stop_and_does_not_answer_about_is_left_to_the_outbox",
    ),
    Row(
        "the same, and the router's copy of it is being kept",
        "client_disconnected",
        f"{_LEAVING}a_receipt_whose_copy_is_being_kept_at_a_stop_is_logged_once",
    ),
    Row("a defect of the router's", "internal_error", f"{_ONE}a_defect_of_the_routers_own"),
)

_BY_NOBODY = (
    "unit/services/router/admission/test_refusals.py::test_a_flood_of_requests_without_a_tenant_is_one_entry_an_hour"
)

WITHOUT: tuple[Row, ...] = (
    Row("no key, or nobody's: counted, and logged once an hour", "API_KEY_INVALID", _BY_NOBODY),
    Row(
        "the keyset has ended, so nothing could sign: a number in the tenant's usage",
        "KEYSET_ENDED",
        f"{_EXCHANGE}test_metered.py::test_a_refusal_by_a_router_whose_keyset_ends_is_in_the_number",
    ),
    Row(
        "refused for a limit too often: a number in the tenant's usage",
        "TENANT_RATE_EXCEEDED",
        f"{_EXCHANGE}test_metered.py::test_every_refusal_has_a_receipt_or_is_in_the_number",
    ),
    Row(
        "as many of the tenant's wait for the ledger as may: a number in its usage",
        "LEDGER_UNAVAILABLE",
        f"{_EXCHANGE}test_metered.py::test_a_refusal_for_which_no_receipt_can_wait_is_in_the_number",
    ),
    Row(
        "no place is left for its call, over gRPC: a number in the tenant's usage",
        "CALLS_BUSY",
        f"{_DOOR}a_tenant_that_brings_nothing_holds_half_of_the_places_and_others_are_served",
    ),
    Row(
        "its message does not come, over gRPC: a number in the tenant's usage",
        "MESSAGE_LATE",
        f"{_DOOR}a_tenant_that_brings_nothing_holds_half_of_the_places_and_others_are_served",
    ),
    Row(
        "its client leaves while its body comes, HTTP/1.1: a number in the tenant's usage",
        "PROMPT_ABANDONED",
        f"{_ABANDONED}half_a_body_over_http1",
    ),
    Row(
        "its client has leave to send a body and leaves, HTTP/1.1: a number in the tenant's usage",
        "PROMPT_ABANDONED",
        f"{_ABANDONED}leave_to_send_a_body_that_never_comes_over_http1",
    ),
    Row(
        "its client leaves while its body comes, HTTP/2: a number in the tenant's usage",
        "PROMPT_ABANDONED",
        f"{_ABANDONED}half_a_body_over_http2",
    ),
    Row(
        "the router stops while its body comes: a number in the tenant's usage",
        "PROMPT_ABANDONED",
        f"{_ABANDONED}a_router_that_stops_while_a_body_comes",
    ),
    Row(
        "its client leaves while its message comes, over gRPC: a number in the tenant's usage",
        "MESSAGE_MISSING",
        f"{_ABANDONED}half_a_message_over_grpc",
    ),
    Row(
        "its message is none, over gRPC: a number in the tenant's usage",
        "MESSAGE_MALFORMED",
        f"{_DOOR}a_message_that_is_none_is_refused_and_counted[malformed]",
    ),
    Row(
        "its call ends without a message, over gRPC: a number in the tenant's usage",
        "MESSAGE_MISSING",
        f"{_DOOR}a_message_that_is_none_is_refused_and_counted[missing]",
    ),
)

NOT_REFUSALS_OF_A_TENANTS_PROMPT: Mapping[str, str] = {
    **dict.fromkeys(
        ("API_KEY_INVALID", "API_KEY_EXPIRED", "TENANT_DISABLED", "TENANTS_UNAVAILABLE"), "nobody's tenant is known"
    ),
    **dict.fromkeys(
        (
            "CALLS_BUSY",
            "CONNECTION_ENDING",
            "EXPECTATION_FAILED",
            "HEAD_TOO_LARGE",
            "HTTP_VERSION_NOT_SUPPORTED",
            "METHOD_NOT_ALLOWED",
            "REQUEST_MISDIRECTED",
            "TARGET_TOO_LONG",
        ),
        "refused by its head, before anybody has read what it is",
    ),
    **dict.fromkeys(
        ("NOT_FOUND", "REPORTS_BUSY", "SIGNING_ALGO_NOT_SUPPORTED", "TENANT_READS_EXCEEDED", "CALL_TOO_LONG"),
        "asks for a document",
    ),
    **dict.fromkeys(("E2EE_REFUSED", "TENANT_LIMITED"), "what others of these are kinds of"),
    "INTERNAL": "a defect, which is an end",
    "KEYSET_ENDED": "nothing is there to sign with",
}
"""Reasons of the router's errors of which no receipt tells, and why."""
