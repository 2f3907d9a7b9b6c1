"""A grid knows an image model by width, depth and mixer; this builds the isotropic model of such a backbone."""

from __future__ import annotations

from dataclasses import asdict

from mixerzoo.tasks.config import BackboneConfig

from .zoo_isotropic import IsotropicMixer


def image_model(
    task: str,
    backbone: BackboneConfig,
    *,
    img_size: int,
    patch_size: int,
    num_classes: int,
    scan_order: str,
    pos_embed: str,
    dynamic_img_size: bool = False,
) -> IsotropicMixer:
    """Builds a model for grey images. Raises ValueError, naming the task, for several mixers or no channel mixer."""
    if isinstance(backbone.mixer, list) or backbone.channel_mixer is None:
        raise ValueError(
            f"{task} takes one mixer and a channel mixer, got backbone.mixer={backbone.label} and "
            f"backbone.channel_mixer={backbone.channel_mixer}"
        )
    mixer = dict(backbone.mixer)
    model = IsotropicMixer(
        img_size=img_size,
        patch_size=patch_size,
        in_chans=1,
        num_classes=num_classes,
        embed_dim=backbone.dim,
        depth=backbone.depth,
        mixer=mixer.pop("name"),
        mixer_kwargs=mixer,
        scan_order=scan_order,
        channel_mixer=asdict(backbone.channel_mixer),
        norm=backbone.norm,
        final_norm=backbone.norm,
        lower_bounds=backbone.lower_bounds,
        pos_embed=pos_embed,
        dynamic_img_size=dynamic_img_size,
        proj_drop_rate=backbone.dropout,
    )
    model.set_grad_checkpointing(backbone.gradient_checkpointing)
    return model
