"""Capabilities that the services share. Imports run downwards only; `pyproject.toml` has the floors."""
