"""What a mesh, or a part of one, survives. The mesh that most tests share ends with the last test of this folder."""
