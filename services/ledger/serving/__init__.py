"""It is responsible for what readers get: the log's tail, its proofs and tiles, over gRPC and HTTPS."""
