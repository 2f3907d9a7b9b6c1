"""Synthetic tasks that each isolate one ability."""
