"""Makes the language model one of transformers': module, cache, inputs and loss."""
