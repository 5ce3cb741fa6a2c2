"""A stand-in for Pointillist."""
