"""The federated example with noise, in an environment that has OpenDP: `make federated`."""
