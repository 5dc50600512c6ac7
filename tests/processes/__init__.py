"""The mesh as real processes."""
