"""How each kind of tool is run. Each module has one `Tool`."""
