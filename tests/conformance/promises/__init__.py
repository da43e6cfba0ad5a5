"""What the router promises, row by row: each row names the test that proves it, and docs/router.md shows them all."""
