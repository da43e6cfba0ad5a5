"""It is responsible for where a prompt may go, and for the hop there: nodes of the mesh, and foreign providers."""
