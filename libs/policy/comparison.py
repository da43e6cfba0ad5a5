"""It is responsible for what one policy allows that another does not, and the other way round.

Both documents are laid out as facts, one a member, so that nothing of either is left out: a member for which no words
are chosen here is still compared, and told by its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from libs import jcs
from libs.policy.constraints import TenantConstraints
from libs.policy.document import Policy

_Path = tuple[str, ...]
_Fact = frozenset[str] | str | int | bool | None
"""A set; a value; or None, which in a set's place means any, and in a value's place that there is none."""


class Effect(StrEnum):
    """What a difference does to the one who is judged."""

    ALLOWS = "allows"
    WITHDRAWS = "withdraws"
    CHANGES = "changes"
    """Neither more nor less: another value in its place."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which the second policy differs from the first."""

    member: str
    """Dotted, as in the document."""
    effect: Effect
    words: str


_UNCHAINED = frozenset({"v", "version", "previous"})
"""What differs in any two versions; whether it is right is for succession."""

_OPPOSITE = {
    Effect.ALLOWS: Effect.WITHDRAWS,
    Effect.WITHDRAWS: Effect.ALLOWS,
    Effect.CHANGES: Effect.CHANGES,
}

_PATCH_LEVELS = (
    ("statuses", Effect.ALLOWS, "machines with TCB status"),
    ("refused_advisories", Effect.WITHDRAWS, "machines subject to"),
    ("grace_seconds", Effect.ALLOWS, "grace for machines out of date, s"),
    ("minimum_evaluation_number", Effect.WITHDRAWS, "least TCB evaluation number"),
    ("maximum_collateral_age_seconds", Effect.ALLOWS, "age of collateral, s"),
)

_MEANINGS: tuple[tuple[str, Effect, str], ...] = (
    ("not_before", Effect.CHANGES, "begins to hold, unix seconds"),
    ("not_after", Effect.CHANGES, "ceases to hold, unix seconds"),
    ("operators keys", Effect.CHANGES, "operator"),
    ("operators threshold", Effect.CHANGES, "operators who must sign"),
    ("vendor_roots", Effect.ALLOWS, "machines under vendor root"),
    ("tenant_admin_key", Effect.CHANGES, "key that vouches for tenants"),
    ("evidence_max_age_seconds", Effect.ALLOWS, "age of evidence, s"),
    ("challenge_max_age_seconds", Effect.ALLOWS, "age of challenges, s"),
    ("retention_months", Effect.CHANGES, "months that tenants' entries are kept"),
    ("lifted_revocations", Effect.ALLOWS, "what is revoked by"),
    ("td_attributes", Effect.ALLOWS, "guests with TD attributes"),
    *((f"tcb {name}", effect, noun) for name, effect, noun in _PATCH_LEVELS),
    *((f"roles * tcb {name}", effect, noun) for name, effect, noun in _PATCH_LEVELS),
    ("roles * tcb", Effect.WITHDRAWS, "rule of its own about patch levels"),
    ("roles * measurements", Effect.ALLOWS, "code:"),
    ("roles * snp_measurements", Effect.ALLOWS, "code:"),
    ("roles * gpu_required", Effect.WITHDRAWS, "needs a GPU"),
    ("roles *", Effect.CHANGES, "stands among the roles"),
    ("devices allowed", Effect.ALLOWS, "machines:"),
    ("devices revoked", Effect.WITHDRAWS, "machine"),
    ("devices revoked_families", Effect.WITHDRAWS, "CPU family"),
    ("gpu", Effect.ALLOWS, "GPU evidence"),
    ("gpu issuers", Effect.ALLOWS, "GPUs by the word of"),
    ("gpu allowed_ueids", Effect.ALLOWS, "GPUs:"),
    ("gpu allowed_models", Effect.ALLOWS, "GPU models:"),
    ("gpu revoked_ueids", Effect.WITHDRAWS, "GPU or switch"),
    ("gpu maximum_token_age_seconds", Effect.ALLOWS, "age of GPU tokens, s"),
    ("gpu reports_required", Effect.WITHDRAWS, "needs each GPU's own report"),
    ("snp", Effect.ALLOWS, "SEV-SNP evidence"),
    ("snp minimum_tcb *", Effect.ALLOWS, "machines of the product"),
    ("snp minimum_tcb * *", Effect.WITHDRAWS, "least patch level"),
    ("snp maximum_crl_age_seconds", Effect.ALLOWS, "age of AMD's CRL, s"),
    ("snp minimum_abi_major", Effect.WITHDRAWS, "least ABI"),
    ("snp minimum_abi_minor", Effect.WITHDRAWS, "least ABI"),
    ("snp minimum_guest_svn", Effect.WITHDRAWS, "least guest SVN"),
    ("snp allow_smt", Effect.ALLOWS, "guests that share cores with others"),
    ("snp require_single_socket", Effect.WITHDRAWS, "needs a single socket"),
    ("snp required_platform", Effect.WITHDRAWS, "hosts without"),
    ("snp id_keys", Effect.ALLOWS, "guests whose ID block is signed by"),
    ("snp author_keys", Effect.ALLOWS, "guests whose ID key is certified by"),
    ("models *", Effect.ALLOWS, "weights"),
    ("constraints *", Effect.CHANGES, "stands among the tenants"),
    ("constraints * verified_only", Effect.WITHDRAWS, "verified nodes alone"),
    ("constraints * regions", Effect.ALLOWS, "nodes in regions:"),
    ("constraints * tee_types", Effect.ALLOWS, "nodes of technologies:"),
    ("constraints * gpu_required", Effect.WITHDRAWS, "nodes with a proven GPU alone"),
    ("constraints * models", Effect.ALLOWS, "models:"),
    ("constraints * max_evidence_age_seconds", Effect.ALLOWS, "evidence as old as, s:"),
    ("foreign_providers *", Effect.ALLOWS, "prompts to the foreign provider"),
    ("foreign_providers * measurements", Effect.ALLOWS, "its code:"),
    ("foreign_providers * session_claims", Effect.WITHDRAWS, "its sessions without"),
    ("foreign_providers * best_effort", Effect.ALLOWS, "serves unverified"),
    ("foreign_providers * tenants", Effect.ALLOWS, "unverified prompts of tenant"),
    ("key_releases *", Effect.ALLOWS, "use of the key"),
    ("key_releases * roles", Effect.ALLOWS, "use of the key by role"),
    ("key_releases * compose_hashes", Effect.ALLOWS, "use of the key by composes:"),
    ("key_releases * rotate_after_days", Effect.CHANGES, "days to a new epoch"),
)

_WHOLE = ("roles * tcb", "snp minimum_tcb *", "key_releases *", "foreign_providers *")
"""Objects that are told as one when they appear or go: their members had no meaning without them."""

_PRESENT = (*_WHOLE, "roles *", "gpu", "snp")
"""Objects whose being there says something."""

_EMPTY_IS_ANY = ("devices allowed", "gpu allowed_ueids", "gpu allowed_models")
"""Lists that limit something only when they list something."""

_ABSENT_IS_ANY = (
    *_EMPTY_IS_ANY,
    "key_releases * compose_hashes",
    *(f"constraints * {name}" for name in ("regions", "tee_types", "models", "max_evidence_age_seconds")),
)
"""Members that limit something only where they are stated."""

_QUOTED = frozenset({"models", "key_releases", "constraints", "foreign_providers"})
"""Objects whose members' names are data."""


def compare(before: Policy, after: Policy) -> tuple[Difference, ...]:
    """Return every difference of the second policy from the first but those that number and chain it."""
    tenants = before.constraints.by_tenant.keys() | after.constraints.by_tenant.keys()
    old, new = _facts(before, tenants), _facts(after, tenants)
    only = {path for path in old.keys() ^ new.keys() if _matches(path, _WHOLE)}
    found: list[Difference] = []
    for path in sorted(old.keys() | new.keys()):
        if path in only:
            found.append(_whole(path, old, new))
        elif not any(path[: len(whole)] == whole for whole in only):
            found.extend(_differences(path, old.get(path), new.get(path)))
    return tuple(found)


def _facts(policy: Policy, tenants: Collection[str]) -> Mapping[_Path, _Fact]:
    document = jcs.loads_object(policy.document)
    # A tenant without an entry is not without constraints, so what holds for each is compared, stated or not.
    document.pop("constraints", None)
    facts = {path: fact for name in document.keys() - _UNCHAINED for path, fact in _lay_out((name,), document[name])}
    devices = document["devices"]
    # Either list admits a machine, and where both are empty any machine is: only together do they mean something.
    facts.pop(("devices", "allowed_families"), None)
    facts["devices", "allowed"] = frozenset((*devices["allowed"], *devices.get("allowed_families", ())))
    facts.update(_constraints("default", policy.constraints.default))
    for tenant_id in tenants:
        facts["constraints", tenant_id] = tenant_id in policy.constraints.by_tenant
        facts.update(_constraints(tenant_id, policy.constraints.of(tenant_id)))
    return {path: fact for path, fact in facts.items() if fact or not _matches(path, _EMPTY_IS_ANY)}


def _constraints(entry: str, tenant: TenantConstraints) -> Iterator[tuple[_Path, _Fact]]:
    models = None
    if tenant.models is not None:
        models = frozenset(
            f"{model} {' '.join(sorted(weights)) or 'with no weights'}" for model, weights in tenant.models.items()
        )
    for name in tenant.__slots__:
        yield ("constraints", entry, name), models if name == "models" else getattr(tenant, name)


def _lay_out(path: _Path, value: Any) -> Iterator[tuple[_Path, _Fact]]:
    match value:
        case dict():
            if _matches(path, _PRESENT):
                yield path, True
            for name, each in value.items():
                yield from _lay_out((*path, name), each)
        case list() if path in (("key_releases",), ("foreign_providers",)):
            for rule in value:
                yield from _lay_out((*path, rule["name"]), rule)
        case list():
            yield path, frozenset(map(_entry, value))
        case _:
            yield path, value


def _entry(value: Any) -> str:
    """One thing of a list, in words by which two lists can be compared."""
    if isinstance(value, str):
        return value
    digest = hashlib.sha256(jcs.dumps(value)).hexdigest()[:16]
    if "compose_hash" in value:
        return f"compose {value['compose_hash']} on platform {digest}"
    if "certificate" in value:
        kind = "development, " if value["development"] else ""
        return f"{value['name']} ({kind}{value['tee_type']}, {digest})"
    return f"{value['issuer']} ({digest})"


def _whole(path: _Path, old: Mapping[_Path, _Fact], new: Mapping[_Path, _Fact]) -> Difference:
    more, noun = _meaning(path)
    facts = new if path in new else old
    members = [
        f"{'.'.join(each[len(path) :])} {_shown(fact)}"
        for each, fact in sorted(facts.items())
        if each[: len(path)] == path and each != path
    ]
    effect = more if path in new else _OPPOSITE[more]
    return Difference(_dotted(path), effect, f"{noun} ({'; '.join(members)})")


def _differences(path: _Path, old: _Fact, new: _Fact) -> Iterator[Difference]:
    if old == new:
        return
    more, noun = _meaning(path)
    less, member = _OPPOSITE[more], _dotted(path)
    if None in (old, new) and _matches(path, _ABSENT_IS_ANY):
        words = f"any, were {_shown(old)}" if new is None else f"{_shown(new)} alone, were any"
        yield Difference(member, more if new is None else less, f"{noun} {words}")
    elif isinstance(old, frozenset) or isinstance(new, frozenset):
        yield from _differences_of_sets(path, _set(old), _set(new))
    elif isinstance(old, bool) or isinstance(new, bool):
        yield Difference(member, more if new else less, f"{noun}: {_shown(new)}, was {_shown(old)}")
    elif isinstance(old, int) and isinstance(new, int):
        yield Difference(member, more if new > old else less, f"{noun}: {new}, was {old}")
    else:
        yield Difference(member, Effect.CHANGES, f"{noun}: {_shown(new)}, was {_shown(old)}")


def _differences_of_sets(path: _Path, before: frozenset[str], after: frozenset[str]) -> Iterator[Difference]:
    more, noun = _meaning(path)
    for value in sorted(after ^ before):
        come = value in after
        effect = more if come else _OPPOSITE[more]
        yield Difference(_dotted(path), effect, f"{noun} {value}{_change(more, come=come)}")
    if before == after:
        yield Difference(_dotted(path), Effect.CHANGES, f"{noun} nothing: stated in one of them alone")


def _set(fact: _Fact) -> frozenset[str]:
    return fact if isinstance(fact, frozenset) else frozenset()


def _change(more: Effect, *, come: bool) -> str:
    """Where something is neither allowed nor withdrawn, the words say which way it changes."""
    return "" if more is not Effect.CHANGES else ": new" if come else ": no more"


def _meaning(path: _Path) -> tuple[Effect, str]:
    for pattern, more, noun in _MEANINGS:
        if _matches(path, (pattern,)):
            return more, noun
    return Effect.CHANGES, path[-1]


def _matches(path: _Path, patterns: tuple[str, ...]) -> bool:
    return any(_is_like(path, tuple(pattern.split(" "))) for pattern in patterns)


def _is_like(path: _Path, pattern: _Path) -> bool:
    return len(path) == len(pattern) and all(each in ("*", name) for name, each in zip(path, pattern, strict=True))


def _dotted(path: _Path) -> str:
    first, *others = path
    if first in _QUOTED and others:
        return ".".join((first, f'"{others[0]}"', *others[1:]))
    return ".".join(path)


def _shown(fact: _Fact) -> str:
    match fact:
        case None:
            return "none"
        case bool():
            return "yes" if fact else "no"
        case frozenset():
            return ", ".join(sorted(fact)) or "nothing"
        case _:
            return str(fact)
