"""Development TEE. It is responsible for evidence on machines that have no TEE: a mock vendor's complete PKI, real TDX
quotes under it, one dstack guest agent per service, and the PCCS that serves the collateral.

It trusts nobody and nobody may trust it: whoever can read its state directory can forge everything it says. That its
evidence is worthless as security is settled by cryptography and not by a flag. It is signed under a root that this
state directory made at random, so the one verifier that judges all evidence refuses it wherever policy does not name
that very root, and a policy that names it says so in every verdict.

It never sees prompts, answers, or keys of the mesh's own making; it does hold the keys that its guest agents derive.
"""
