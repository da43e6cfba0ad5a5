"""One table of bad evidence: each row is evidence that is valid but for one thing, and the reason that must name it."""
