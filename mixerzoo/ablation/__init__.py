"""Grids of training runs: expand, match parameters, run in a pool, store, report."""
