"""It is responsible for the ACI identity of this process: its keys, its keyset, its attestation reports."""
