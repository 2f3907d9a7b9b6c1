from .op import softmax_attention

__all__ = ["softmax_attention"]
