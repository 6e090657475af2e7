"""Findings that need only recorded curves."""
