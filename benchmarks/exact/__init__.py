"""The time held back of a client's deadline."""
