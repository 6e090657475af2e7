"""Two runs or more on one axis."""
