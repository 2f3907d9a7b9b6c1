"""mixerzoo offers interchangeable sequence mixers and honest comparisons between them."""

from mixerzoo.kernels.dispatch import use_backend
from mixerzoo.registry.catalog import build_mixer, list_mixers, mixer_info, register_mixer

__all__ = ["build_mixer", "list_mixers", "mixer_info", "register_mixer", "use_backend"]
