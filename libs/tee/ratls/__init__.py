"""dstack's RA-TLS: a certificate whose key is bound by the evidence inside it.

It is responsible for reading what a foreign dstack peer presents, in every wire form that dstack has used, and for the
checks that belong to the certificate itself. Machine and code are judged where all evidence is. A certificate's
evidence binds a key and no challenge: it proves no freshness.
"""
