from .op import gated_scan

__all__ = ["gated_scan"]
