"""Draws Pathfinder and Path-X, or reads them from the released files."""
