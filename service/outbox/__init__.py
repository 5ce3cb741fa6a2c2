"""The durable store between the way in and the way out."""
