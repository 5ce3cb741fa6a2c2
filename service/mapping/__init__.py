"""From an event to a record; pure."""
