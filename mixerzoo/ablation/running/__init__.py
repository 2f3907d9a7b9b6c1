"""Carries a plan's runs out: engines, processes, the store on disk, and the trials of a search."""
