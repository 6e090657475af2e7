"""The Time-MoE forecaster, room by room."""
