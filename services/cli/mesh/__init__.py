"""It is responsible for a mesh as an operator meets it: where it keeps what it has, and the way to each service."""
