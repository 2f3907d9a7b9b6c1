"""Reads and writes flash-linear-attention's checkpoints, and lets its HGRN2 layers run on our op."""
