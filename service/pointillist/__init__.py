"""The HTTP client of Pointillist, and the meaning of its answers."""
