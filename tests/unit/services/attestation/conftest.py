from tests.fakes.joined_fixtures import kms, machine, mesh

__all__ = ["kms", "machine", "mesh"]
