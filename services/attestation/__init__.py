"""It is responsible for vendor collateral, for challenges, for appraising evidence on behalf of others and, again and
again, that of every live node, and for the archive of what each appraisal rested on.

Trust: may refuse honest nodes or serve stale collateral; cannot make false evidence pass, because every relying service
appraises in its own process too.

It is the only service that reaches the vendors. It never sees prompts, outputs or keys.
"""
