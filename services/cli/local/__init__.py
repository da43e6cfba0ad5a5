"""It is responsible for a whole mesh on this machine: `teemesh up`, `down` and `reset`."""
