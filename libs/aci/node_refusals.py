"""Responsible for the reasons with which nodes refuse and that routers tell apart from all others."""

from __future__ import annotations

TENANT_SHARE_TAKEN = "TENANT_SHARE_TAKEN"
"""The node takes no more requests of this tenant for now."""
