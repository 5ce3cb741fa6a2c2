"""An event: its rules, its ids, its Segment JSON; pure."""
