"""Takes every check of `libs.tee` away, one at a time, and sees the bad evidence that it refuses get past it.

`python -m tests.mutation` does so for all of them with the whole table of bad evidence; the default tests with the rows
that reach the check, which are the only ones that taking it away can change. Identity and keys have a table of relays,
and mutants of their own.
"""
