"""Five ways to break a budget, naive and meshed."""
