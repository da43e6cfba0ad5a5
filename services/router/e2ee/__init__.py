"""Prompts that come encrypted, and answers that go back so (e2ee-v2)."""
