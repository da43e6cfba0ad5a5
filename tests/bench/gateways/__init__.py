"""What a gateway adds to an engine that costs nothing: this mesh beside what a user would pick instead."""
