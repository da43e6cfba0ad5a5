"""It is responsible for what is signed and seen of the tree: the auditor's heads, proofs, and witnesses."""
