"""Runs as people see them in a terminal, and scripts in JSON.

run.py        one run, watched to its end
live.py       a run while it runs
waterfall.py  where a run's time went, as rows on one time axis
output.py     exit codes, JSON, errors
"""
