"""It is responsible for `teemesh ledger`: following, proving, verifying, keeping and ordering what the log holds."""
