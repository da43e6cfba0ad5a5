"""It is responsible for who a service is and whom it believes: attested keys and certificates, leases, pinned channels.

A member of the mesh proves itself to the KMS with evidence and receives an hour's certificate; it believes a peer only
after appraising that peer's own evidence under the operators' policy, and only for as long as the lease that results.
"""
