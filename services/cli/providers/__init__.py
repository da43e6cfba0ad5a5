"""It is responsible for `teemesh providers`: the nodes that serve, and what of that holds."""
