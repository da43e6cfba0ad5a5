"""It is responsible for tenants' vaults: their shares, what is ordered of them, and their erasure."""
