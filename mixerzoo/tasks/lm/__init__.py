"""Language modelling: a model over the stack, and next-byte prediction on text."""
