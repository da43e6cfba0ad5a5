"""It is responsible for what is left of a prompt: its receipt, sealed, logged, kept, found again and erased."""
