"""The language model as transformers knows it: module, cache, inputs and loss."""
