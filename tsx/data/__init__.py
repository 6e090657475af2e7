"""Series, windows, scaling and loaders."""
