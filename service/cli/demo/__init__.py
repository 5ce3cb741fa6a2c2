"""`make run` without a token: a demonstration on this machine."""
