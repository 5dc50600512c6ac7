"""The time until every hop is idle after the end of runs."""
