from .op import hgrn2

__all__ = ["hgrn2"]
