"""It is responsible for `teemesh kms`: what operators do with keys, and what the log says was done."""
