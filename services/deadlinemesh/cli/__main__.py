"""`python -m deadlinemesh.cli` is the same as `dmesh`."""

from deadlinemesh.cli import main

main()
