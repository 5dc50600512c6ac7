"""Upstreams that fail, and models that hang."""
