"""End-to-end encryption of prompts and answers, version 2 (`e2ee-v2`): both sides of it, and nothing of any service."""

VERSION = "2"
"""As headers and attestation reports have it."""
