"""Hostile bytes against the parsers of foreign evidence: `python -m tests.fuzz`, and the same in Hypothesis."""
