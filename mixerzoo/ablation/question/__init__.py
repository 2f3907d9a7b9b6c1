"""Resolves what a grid asks to runs: settings and axes, matched sizes, searches, and the costs."""
