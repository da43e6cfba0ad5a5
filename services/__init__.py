"""The processes of the mesh, one folder each. They meet on the wire, never by import."""
