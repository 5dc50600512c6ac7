"""A tenant beside an aggressor."""
