"""Good answers under overload."""
