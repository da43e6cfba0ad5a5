"""What the ACI specification defines, and nothing else: keyset, report, receipt, session, event streams, error bodies.

Pure: bytes and values in, bytes and values out. Section numbers in this package are those of the public `spec/aci.md`,
version `aci/1`.
"""
