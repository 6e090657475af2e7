"""Every run, metric line and finding: events, journal, store and queries."""
