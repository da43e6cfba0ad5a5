"""It is responsible for what clients meet: listeners, paths, and answers that HTTP and gRPC clients can read."""
