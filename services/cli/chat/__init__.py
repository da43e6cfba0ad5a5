"""It is responsible for `teemesh chat`, and for the demonstration that is one chat with every check of it."""
