"""NVIDIA confidential GPUs: responsible for what their evidence proves.

`token` checks who signed the vendor's verdict, when, and for which challenge; `claims` judges what the verdict says of
each device; `chain` and `report` verify a device's own report; `evidence` puts them together under policy's rule.
Everything is pure: keys and roots are pinned by policy, the time is a parameter, nothing is fetched.
"""
