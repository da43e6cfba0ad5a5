"""No prompt ever reaches an upstream that is not verified, where verification is demanded: what was tried."""

from __future__ import annotations

from tests.conformance.promises.row import Row

_EXCHANGE = "unit/services/router/exchange/"
_RUNNING = f"{_EXCHANGE}test_running.py::test_"
_MEANWHILE = f"{_EXCHANGE}test_meanwhile.py::test_"
_ANY_MORE = f"{_MEANWHILE}a_prompt_goes_nowhere_that_it_may_not_go_any_more"
_SECOND = f"{_MEANWHILE}a_second_attempt_is_judged_as_the_first_was"
_FAILED = f"{_MEANWHILE}where_a_node_had_the_prompt_and_failed_that_is_said_and_no_other_gets_it"
_WAITED = f"{_EXCHANGE}test_waiting.py::test_whoever_waited_is_judged_as_if_they_came_now"
_LYING = "contract/test_lying_registry.py::test_"
_CHOSEN = "contract/test_chosen_and_revoked.py::test_"
_REVOKED_AFTER = f"{_CHOSEN}a_node_that_is_revoked_after_it_was_chosen_gets_no_prompt"
_REVOKED_LISTED = f"{_LYING}a_revoked_node_that_stays_listed_is_used_no_more"
_RELAY = "unit/libs/identity/test_relays.py::test_a_relay_is_refused_for_its_reason"
_SELECTION = "unit/services/router/routing/test_selection.py::test_"
_UNMET = f"{_SELECTION}a_node_that_is_not_what_policy_demands_for_the_tenant_is_never_chosen"
_UPSTREAMS = "unit/services/router/routing/test_upstreams.py::test_"
_ACI = "contract/foreign/test_aci.py::test_"
_TAMPERED = f"{_ACI}what_is_tampered_with_is_refused_by_its_reason_and_gets_no_prompt"
_WANTED = f"{_ACI}what_policy_wants_and_is_not_shown_is_refused"
_SINCE = "contract/foreign/test_meanwhile.py::test_"
_WORKER = "contract/foreign/test_vllm_proxy.py::test_"
_UNPROVEN = f"{_WORKER}what_a_report_does_not_prove_is_refused_and_gets_no_prompt"
_OPENAI = "contract/foreign/test_openai.py::test_"
_PROMPT = "unit/services/router/test_prompt.py::test_"
_ASKED = "mesh/aci/test_constraints.py::test_"
_GRPC = "contract/test_router_grpc.py::test_"

A_HOSTILE_REGISTRY: tuple[Row, ...] = (
    Row(
        "lists a node of another measurement",
        "MEASUREMENT_NOT_ALLOWED",
        f"{_LYING}a_node_of_another_measurement_is_not_used",
    ),
    Row("lists a node in a debug TD", "TD_DEBUG", f"{_LYING}a_node_in_a_debug_td_is_not_used"),
    Row("lists a node with other weights", "MODEL_NOT_ALLOWED", f"{_LYING}a_node_with_other_weights_is_not_used"),
    Row("lists a node with another model", "MODEL_NOT_ALLOWED", f"{_LYING}a_node_with_another_model_is_not_used"),
    Row(
        "goes on listing a revoked measurement",
        "MEASUREMENT_REVOKED",
        f"{_REVOKED_LISTED}[measurement-MEASUREMENT_REVOKED]",
    ),
    Row("goes on listing a revoked node", "NODE_REVOKED", f"{_REVOKED_LISTED}[node-NODE_REVOKED]"),
    Row("goes on listing a revoked key", "KEY_REVOKED", f"{_REVOKED_LISTED}[key-KEY_REVOKED]"),
    Row(
        "lists another node's endpoint for a node's own",
        "NODE_NAME_MISMATCH",
        f"{_LYING}another_nodes_endpoint_is_not_taken_for_a_nodes_own",
    ),
    Row(
        "lists another node under a node's name",
        "NODE_NAME_MISMATCH",
        f"{_LYING}another_node_under_a_nodes_name_is_not_used",
    ),
    Row("lists one name twice", "NODE_NAME_MISMATCH", f"{_LYING}a_name_that_is_listed_twice_is_one_node"),
    Row("lists a service of another role", "PEER_UNREACHABLE", f"{_LYING}a_service_of_another_role_is_no_node"),
    Row(
        "lists a stranger with a CA of its own",
        "PEER_UNREACHABLE",
        f"{_LYING}a_stranger_with_a_ca_of_its_own_is_no_node",
    ),
    Row(
        "lists an endpoint that is none",
        "ENDPOINT_MALFORMED",
        f"{_UPSTREAMS}an_endpoint_that_is_none_is_refused_and_harms_nobody_else",
    ),
    Row(
        "lists a relay before a node, with the node's own session",
        "SESSION_NOT_CONFIRMED",
        f"{_LYING}a_way_that_leads_to_the_node_itself_is_not_the_endpoint_of_its_session",
    ),
    Row(
        "shows the session of another node",
        "SESSION_NOT_CONFIRMED",
        f"{_LYING}the_session_of_another_node_is_not_cited",
    ),
    Row("shows a session that it edited", "SESSION_NOT_CONFIRMED", f"{_LYING}a_session_that_was_edited_is_not_cited"),
    Row(
        "shows a session that claims more than was found",
        "SESSION_NOT_CONFIRMED",
        f"{_UPSTREAMS}a_node_whose_session_claims_more_than_was_found_is_not_used",
    ),
    Row(
        "shows a session that has ended",
        "SESSION_NOT_CONFIRMED",
        f"{_UPSTREAMS}a_session_that_is_not_valid_now_is_refused[has ended]",
    ),
    Row(
        "shows an edited session under the old id",
        "SESSION_ID_MISMATCH",
        f"{_LYING}a_session_that_was_edited_under_its_old_id_is_not_cited",
    ),
    Row("shows what is no session", "JSON_MALFORMED", f"{_LYING}what_is_no_session_is_not_cited[garbage]"),
    Row("shows no session", "SESSION_UNKNOWN", f"{_LYING}what_is_no_session_is_not_cited[nothing]"),
    Row(
        "hides the only node",
        "UPSTREAM_VERIFICATION_FAILED",
        f"{_LYING}a_node_that_is_hidden_is_not_used_and_nothing_takes_its_place",
    ),
    Row("lists a lease that ran out", "UPSTREAM_VERIFICATION_FAILED", f"{_LYING}a_lease_that_ran_out_is_not_used"),
)

IN_A_NODES_PLACE: tuple[Row, ...] = (
    Row("other code, measured", "MEASUREMENT_NOT_ALLOWED", f"{_RELAY}[evidence of other code]"),
    Row(
        "a TEE in software, with a root of its own",
        "VENDOR_ROOT_NOT_TRUSTED",
        f"{_RELAY}[evidence of a software TEE with a root of its own]",
    ),
    Row(
        "a machine that is out of date",
        "TCB_STATUS_NOT_ALLOWED",
        f"{_RELAY}[evidence of a machine that is out of date]",
    ),
    Row(
        "a relay with the evidence of the real one's key",
        "SPKI_MISMATCH",
        f"{_RELAY}[a server with the evidence of the real one's key]",
    ),
    Row(
        "a relay with another node's document",
        "EVIDENCE_MISMATCH",
        f"{_RELAY}[a server with another server's document]",
    ),
    Row(
        "a certificate of another CA by the same name",
        "CERTIFICATE_NOT_ACCEPTED",
        f"{_RELAY}[a certificate of another CA by the same name]",
    ),
    Row(
        "a node whose revoked key named a successor",
        "KEY_REVOKED",
        f"{_RELAY}[a server whose revoked key has a successor]",
    ),
)

AFTER_THE_CHOICE: tuple[Row, ...] = (
    Row("its measurement is revoked", "MEASUREMENT_REVOKED", f"{_REVOKED_AFTER}[measurement-MEASUREMENT_REVOKED]"),
    Row("the node is revoked", "NODE_REVOKED", f"{_REVOKED_AFTER}[node-NODE_REVOKED]"),
    Row("its key is revoked", "KEY_REVOKED", f"{_REVOKED_AFTER}[key-KEY_REVOKED]"),
    Row(
        "the next policy does not list its measurement",
        "MEASUREMENT_NOT_ALLOWED",
        f"{_CHOSEN}a_node_whose_measurement_the_next_policy_does_not_list_gets_no_prompt",
    ),
    Row("the model is withdrawn", "MODEL_NOT_FOUND", f"{_ANY_MORE}[the_model_is_withdrawn-model_not_found]"),
    Row(
        "its weights are withdrawn",
        "NODE_NO_LONGER_SUITS",
        f"{_ANY_MORE}[its_weights_are_withdrawn-node_no_longer_suits]",
    ),
    Row(
        "the tenant is kept to another model",
        "MODEL_NOT_FOUND",
        f"{_ANY_MORE}[the_tenant_may_use_another_model_only-model_not_found]",
    ),
    Row(
        "the tenant is kept to a region",
        "TENANT_CONSTRAINTS_UNMET",
        f"{_ANY_MORE}[the_tenant_is_kept_to_a_region-tenant_constraints_unmet]",
    ),
    Row(
        "the tenant's evidence has to be younger",
        "TENANT_CONSTRAINTS_UNMET",
        f"{_ANY_MORE}[the_tenants_evidence_must_be_younger-tenant_constraints_unmet]",
    ),
    Row("the node is drained", "NODE_NO_LONGER_SUITS", f"{_ANY_MORE}[the_node_is_drained-node_no_longer_suits]"),
    Row("its lease ends", "NODE_NO_LONGER_SUITS", f"{_ANY_MORE}[its_lease_is_shortened-node_no_longer_suits]"),
    Row("its session ends", "NODE_NO_LONGER_SUITS", f"{_ANY_MORE}[its_session_ends-node_no_longer_suits]"),
    Row("the registry ends it", "NODE_NO_LONGER_SUITS", f"{_ANY_MORE}[the_registry_ends_it-node_no_longer_suits]"),
    Row("the policy goes stale", "POLICY_STALE", f"{_ANY_MORE}[the_policy_goes_stale-service_unavailable]"),
    Row("the tenant is revoked", "TENANT_REVOKED", f"{_ANY_MORE}[the_tenant_is_revoked-tenant_revoked]"),
    Row(
        "the node has another key",
        "NODE_KEY_CHANGED",
        f"{_MEANWHILE}a_node_that_has_another_key_meanwhile_gets_no_prompt",
    ),
    Row(
        "the pinned session's node has another key",
        "SESSION_NOT_ACCEPTED",
        f"{_MEANWHILE}a_pinned_session_that_its_node_has_replaced_meanwhile_gets_no_prompt",
    ),
    Row(
        "the node has gone",
        "PEER_UNREACHABLE",
        f"{_CHOSEN}a_node_that_has_gone_since_gets_no_prompt",
    ),
    Row(
        "the first node cannot be reached, the model is withdrawn",
        "MODEL_NOT_FOUND",
        f"{_SECOND}[the_model_is_withdrawn-MODEL_NOT_FOUND]",
    ),
    Row(
        "the first node cannot be reached, the tenant is kept to a region",
        "TENANT_CONSTRAINTS_UNMET",
        f"{_SECOND}[the_tenant_is_kept_to_a_region-TENANT_CONSTRAINTS_UNMET]",
    ),
    Row(
        "the first node cannot be reached, the policy goes stale",
        "POLICY_STALE",
        f"{_SECOND}[the_policy_goes_stale-SERVICE_UNAVAILABLE]",
    ),
    Row(
        "the first node cannot be reached, the tenant is revoked",
        "TENANT_REVOKED",
        f"{_SECOND}[the_tenant_is_revoked-TENANT_REVOKED]",
    ),
    Row(
        "the first node has it and fails, the model is withdrawn",
        "ENGINE_UNAVAILABLE",
        f"{_FAILED}[the_model_is_withdrawn]",
    ),
    Row(
        "the first node has it and fails, the tenant is kept to a region",
        "ENGINE_UNAVAILABLE",
        f"{_FAILED}[the_tenant_is_kept_to_a_region]",
    ),
    Row(
        "the first node has it and fails, the policy goes stale",
        "ENGINE_UNAVAILABLE",
        f"{_FAILED}[the_policy_goes_stale]",
    ),
    Row(
        "the first node has it and fails, the tenant is revoked",
        "ENGINE_UNAVAILABLE",
        f"{_FAILED}[the_tenant_is_revoked]",
    ),
    Row(
        "it waited for room, and the tenant is revoked",
        "TENANT_REVOKED",
        f"{_WAITED}[the_tenant_is_revoked-tenant_revoked]",
    ),
    Row(
        "it waited, and the policy goes stale", "POLICY_STALE", f"{_WAITED}[the_policy_goes_stale-service_unavailable]"
    ),
    Row(
        "it waited, and the model is withdrawn", "MODEL_NOT_FOUND", f"{_WAITED}[the_model_is_withdrawn-not_found_error]"
    ),
    Row(
        "it waited, and the tenant is kept to a region",
        "TENANT_CONSTRAINTS_UNMET",
        f"{_WAITED}[the_tenant_is_kept_to_a_region-tenant_constraints_unmet]",
    ),
    Row(
        "it waited, and the node is drained",
        "UPSTREAM_VERIFICATION_FAILED",
        f"{_WAITED}[the_node_is_drained-upstream_verification_failed]",
    ),
)

BY_WHO_ASKS: tuple[Row, ...] = (
    Row(
        "says that nothing need be verified",
        "UPSTREAM_VERIFICATION_FAILED",
        f"{_ASKED}c088_nothing_that_a_client_leaves_out_loosens_the_deployments_demand",
    ),
    Row(
        "sends headers and members that other gateways heed",
        "UPSTREAM_VERIFICATION_FAILED",
        f"{_ASKED}c103_nothing_that_a_client_sends_skips_verification",
    ),
    Row(
        "says twice what is demanded",
        "REQUEST_INVALID",
        f'{_PROMPT}body_that_is_not_one_json_object_is_refused[{{"model":"m","provider":{{}},"provider":{{"aci_verified":true}}}}]',
    ),
    Row("demands what nobody knows", "REQUEST_INVALID", f"{_ASKED}c092_an_unknown_demand_is_refused"),
    Row("pins no session at all", "REQUEST_INVALID", f"{_ASKED}c089_an_empty_list_of_sessions_is_refused"),
    Row(
        "pins a session that nobody has",
        "SESSION_NOT_ACCEPTED",
        f"{_ASKED}c096_an_unknown_pin_is_refused_with_a_receipt",
    ),
    Row("pins a session that is superseded", "SESSION_NOT_ACCEPTED", f"{_ASKED}c097_a_superseded_pin_is_refused"),
    Row(
        "asks over gRPC, where nobody is verified",
        "UPSTREAM_VERIFICATION_FAILED",
        f"{_GRPC}a_prompt_that_nobody_verified_could_serve_goes_nowhere",
    ),
    Row("pins over gRPC what nobody has", "SESSION_NOT_ACCEPTED", f"{_GRPC}a_session_that_nobody_has_is_no_upstream"),
    Row("is to be served in a region", "TENANT_CONSTRAINTS_UNMET", f"{_UNMET}[a region]"),
    Row("is to be served by a technology", "TENANT_CONSTRAINTS_UNMET", f"{_UNMET}[a technology]"),
    Row("is to be served with a GPU", "TENANT_CONSTRAINTS_UNMET", f"{_UNMET}[a GPU]"),
    Row("is to be served on fresh evidence", "TENANT_CONSTRAINTS_UNMET", f"{_UNMET}[fresh evidence]"),
    Row(
        "has affinity to a node that may not serve",
        "UPSTREAM_VERIFICATION_FAILED",
        "unit/services/router/routing/test_preference.py::test_no_preference_leads_to_a_node_that_may_not_serve",
    ),
    Row(
        "asks a router without a fresh policy",
        "POLICY_STALE",
        "contract/test_frozen_policy.py::test_a_router_under_a_frozen_policy_uses_no_node",
    ),
)

BY_A_PROVIDER: tuple[Row, ...] = (
    Row(
        "a relay with a certificate of its own",
        "TLS_KEY_NOT_ATTESTED",
        f"{_ACI}a_relay_with_its_own_certificate_reads_no_prompt",
    ),
    Row(
        "a relay takes a verified provider's place",
        "TLS_KEY_NOT_ATTESTED",
        f"{_ACI}a_relay_that_takes_the_place_of_a_verified_service_reads_no_prompt",
    ),
    Row("an edited keyset", "KEYSET_DIGEST_MISMATCH", f"{_TAMPERED}[edited keyset]"),
    Row("another's keyset, every digest made to fit", "REPORT_DATA_MISMATCH", f"{_TAMPERED}[other keyset]"),
    Row("a report for an earlier nonce", "REPORT_DATA_MISMATCH", f"{_TAMPERED}[stale nonce]"),
    Row(
        "a keyset that fits all but the quote",
        "REPORT_SLOT_MISMATCH",
        f"{_ACI}a_keyset_that_fits_all_but_the_quote_is_refused_and_gets_no_prompt",
    ),
    Row("custody of keys that is not stated", "CUSTODY_NOT_STATED", f"{_TAMPERED}[custody]"),
    Row("an edited session", "SESSION_ID_MISMATCH", f"{_TAMPERED}[edited session]"),
    Row("a session with other claims", "SESSION_ID_MISMATCH", f"{_TAMPERED}[edited claims]"),
    Row("no sessions", "FOREIGN_SESSIONS_MISSING", f"{_TAMPERED}[no sessions]"),
    Row("no list of sessions", "FOREIGN_LIST_MALFORMED", f"{_TAMPERED}[no list]"),
    Row("a keyset that has ended", "KEYSET_EXPIRED", f"{_ACI}an_expired_keyset_is_refused_and_gets_no_prompt"),
    Row("code that policy does not list", "MEASUREMENT_NOT_ALLOWED", f"{_WANTED}[changes0-MEASUREMENT_NOT_ALLOWED]"),
    Row(
        "another subject than policy names",
        "FOREIGN_SUBJECT_NOT_ACCEPTED",
        f"{_WANTED}[changes1-FOREIGN_SUBJECT_NOT_ACCEPTED]",
    ),
    Row("claims that are too few", "SESSION_CLAIMS_INSUFFICIENT", f"{_WANTED}[changes2-SESSION_CLAIMS_INSUFFICIENT]"),
    Row("a machine of another root", "UPSTREAM_VERIFICATION_FAILED", f"{_ACI}another_machines_root_is_refused"),
    Row(
        "its code is revoked while its session stands",
        "MEASUREMENT_REVOKED",
        f"{_SINCE}revoked_code_gets_no_prompt_before_anybody_looks",
    ),
    Row(
        "policy takes it away after the choice",
        "NOT_LISTED",
        f"{_SINCE}what_policy_takes_away_after_the_choice_gets_no_prompt",
    ),
    Row(
        "policy demands more of it for the tenant after the choice",
        "VERIFIED_OTHERWISE",
        f"{_SINCE}what_policy_demands_for_the_tenant_after_the_choice_counts",
    ),
    Row(
        "what it showed is too old by the next policy",
        "UPSTREAM_VERIFICATION_FAILED",
        f"{_SINCE}a_shorter_age_of_evidence_holds_for_what_was_verified_before",
    ),
    Row(
        "it is verified anew as less",
        "VERIFIED_OTHERWISE",
        f"{_SINCE}a_worker_that_is_verified_anew_as_less_gets_only_what_that_may_serve",
    ),
    Row(
        "its pinned session has a successor",
        "SESSION_NOT_ACCEPTED",
        f"{_SINCE}a_request_that_pins_a_session_is_not_served_by_the_one_after",
    ),
    Row("a worker's report with another TLS key", "WORKER_REPORT_DATA_MISMATCH", f"{_UNPROVEN}[tls key]"),
    Row("a worker's report with another signing key", "WORKER_REPORT_DATA_MISMATCH", f"{_UNPROVEN}[signing key]"),
    Row(
        "a worker's report of an earlier question", "WORKER_REPORT_DATA_MISMATCH", f"{_WORKER}an_old_report_is_refused"
    ),
    Row("a worker's report with another compose", "COMPOSE_HASH_MISMATCH", f"{_UNPROVEN}[compose]"),
    Row("a worker's report without its event log", "EVENT_LOG_DOES_NOT_REPLAY", f"{_UNPROVEN}[empty log]"),
    Row(
        "a worker whose channel nothing binds",
        "CHANNEL_NOT_BOUND",
        f"{_WORKER}a_worker_whose_channel_is_not_bound_is_refused",
    ),
    Row(
        "a worker's report in the older form",
        "CHANNEL_NOT_BOUND",
        f"{_WORKER}a_report_of_version_1_in_place_of_2_is_refused",
    ),
    Row(
        "a worker whose TLS key is revoked",
        "FOREIGN_KEY_REVOKED",
        f"{_WORKER}a_tls_key_that_operators_revoked_is_refused",
    ),
    Row(
        "one that proves nothing, for a tenant that is to be verified",
        "SERVES_UNVERIFIED",
        f"{_OPENAI}a_tenant_whose_constraints_say_verified_only_is_not_sent_there",
    ),
    Row(
        "one that proves nothing, for a request that demands it",
        "UPSTREAM_VERIFICATION_FAILED",
        f"{_OPENAI}a_request_that_demands_verification_is_refused_and_not_sent_there[verified-named]",
    ),
    Row(
        "one that proves nothing, for a tenant that policy does not name",
        "MODEL_NOT_FOUND",
        f"{_OPENAI}a_tenant_whom_policy_does_not_name_is_not_sent_there",
    ),
    Row(
        "one that points elsewhere",
        "ENGINE_UNAVAILABLE",
        f"{_OPENAI}a_service_that_points_elsewhere_sends_no_prompt_there",
    ),
)

WAYS: tuple[tuple[str, tuple[Row, ...]], ...] = (
    ("A registry that lies", A_HOSTILE_REGISTRY),
    ("Who stands in a node's place", IN_A_NODES_PLACE),
    ("What changes after a node was chosen", AFTER_THE_CHOICE),
    ("Who asks", BY_WHO_ASKS),
    ("Foreign providers", BY_A_PROVIDER),
)
