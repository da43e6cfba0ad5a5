from tests.fakes.joined_fixtures import machine, mesh

__all__ = ["machine", "mesh"]
