"""Child processes, sweeps, signals and exit reasons."""
