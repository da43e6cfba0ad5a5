"""A whole mesh as processes, and what its users see of it. Its mesh ends with the last test of this folder."""
