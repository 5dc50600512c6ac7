"""The remains of 100,000 streams that end before they are done."""
