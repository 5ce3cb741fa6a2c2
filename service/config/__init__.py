"""Settings, the files they name, and the kinds of values."""
