"""What mixers are made of: the contract, the frame of the linear ones, windows, norms, positions, caches, bounds."""

from .contract import Mixer, Output, Shared
from .depth_shared import DepthShared, FirstValue
from .frame import LinearMixer, RecurrentState
from .layout import Layout, Plane
from .spec import MixerSpec
from .windows import ShortConv, TokenShift, Window

__all__ = [
    "DepthShared",
    "FirstValue",
    "Layout",
    "LinearMixer",
    "Mixer",
    "MixerSpec",
    "Output",
    "Plane",
    "RecurrentState",
    "Shared",
    "ShortConv",
    "TokenShift",
    "Window",
]
