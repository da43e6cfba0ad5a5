"""A whole mesh on a real vLLM, built for CPUs: `make test-vllm`. It takes some 6 GB of disk and 5 GB of memory."""
