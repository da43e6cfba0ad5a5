"""It is responsible for the log on one disk: its files, their order, and every check that they are what they were."""
