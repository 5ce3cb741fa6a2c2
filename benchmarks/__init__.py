"""Benchmarks of the service beside its ceilings; README.md describes each row."""
