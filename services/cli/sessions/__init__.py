"""It is responsible for `teemesh sessions`: the attested sessions that receipts cite."""
