"""Hostile peers and tenants, and what they cost everybody else."""
