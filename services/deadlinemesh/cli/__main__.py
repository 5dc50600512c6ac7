"""`python -m deadlinemesh.cli` is `dmesh`."""

from deadlinemesh.cli import main

main()
