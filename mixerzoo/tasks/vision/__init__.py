"""Importing this package makes every mixer a timm model: `timm.create_model("zoo_hgrn2_tiny_patch16_224")`."""

from . import zoo_models as zoo_models
