"""Provides text for training language models: documents, token files, and rows of tokens in order."""
