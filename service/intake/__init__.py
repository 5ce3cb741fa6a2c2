"""The part that every way in shares: callers, rate limits, byte budgets, certificates."""
