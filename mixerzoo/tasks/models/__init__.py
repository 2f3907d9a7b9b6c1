"""Holds the models that several families of tasks share: the language model and the encoder of sequences."""
