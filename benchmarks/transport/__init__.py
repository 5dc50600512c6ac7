"""The exactness and the cost of the transport."""
