"""Tasks compare mixers. This package has them, the training loop, and the configuration of one run."""

from .base import Batch, Measurements, Metric, RunConfig, Task, build_task, list_tasks
from .config import BackboneConfig, ChannelMixerConfig, TrainConfig

__all__ = [
    "BackboneConfig",
    "Batch",
    "ChannelMixerConfig",
    "Measurements",
    "Metric",
    "RunConfig",
    "Task",
    "TrainConfig",
    "build_task",
    "list_tasks",
]
