"""One table of relays: genuine proofs shown where they prove nothing, and the reason that must refuse each."""
