"""The way out: fetch, map, POST, settle."""
