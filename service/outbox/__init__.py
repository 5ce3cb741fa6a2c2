"""The outbox and its stores."""
