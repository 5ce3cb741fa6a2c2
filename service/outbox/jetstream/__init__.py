"""The store that replicas share."""
