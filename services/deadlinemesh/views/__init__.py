"""Output of runs: for people in a terminal, and as JSON for scripts.

run.py        calls the mesh, watches one run to its end
live.py       shows a run while it runs
waterfall.py  divides a run's time into rows on one time axis
output.py     exit codes, JSON, errors
"""
