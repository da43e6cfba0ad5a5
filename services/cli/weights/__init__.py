"""It is responsible for `teemesh weights`: what a model's files are called in policy, evidence and receipts."""
