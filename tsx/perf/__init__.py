"""FLOPs, peaks, timing and memory."""
