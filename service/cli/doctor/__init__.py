"""`doctor`: one module for each thing that is checked."""
