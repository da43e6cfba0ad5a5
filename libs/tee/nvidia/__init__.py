"""NVIDIA confidential GPUs: responsible for what their evidence proves.

`keys` says which keys may sign; `token` checks who signed the vendor's verdict, when, and for which challenge; `claims`
judges what the verdict says of each device; `chain` and `report` verify a device's own report; `evidence` puts them
together under policy's rule.

Everything is pure: keys and authorities are pinned by policy, the time is a parameter, nothing is fetched.
"""
