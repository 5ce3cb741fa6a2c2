"""How near the service comes to its ceilings; README.md says what each row means."""
