"""Weights: how they start, what ties them, what a checkpoint says of them.

roles       the class that a parameter belongs to
audit       two states of a model, measured
findings    what those measures mean
shadow      why a stored tensor did not move
tied        one at the start and two later
buffers     buffers that move under frozen weights
init_scale  too large, too small, alike or dead at the start
freshness   drawn, or trained before
"""
