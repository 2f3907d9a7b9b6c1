"""Pathfinder and Path-X: the pictures are drawn, or read from the released files."""
