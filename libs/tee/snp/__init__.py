"""What an AMD SEV-SNP guest proves, and how the mesh judges it.

It is responsible for the attestation report, the endorsement that is stapled to it (VCEK, its chain, the root's CRL),
their verification, and the rules that policy states about them. Everything is pure. It trusts the AMD roots that policy
pins and nothing that travels with the evidence.
"""
