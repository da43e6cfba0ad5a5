"""It is responsible for `teemesh policy`: drafted, signed, compared, published, explained and withdrawn."""
