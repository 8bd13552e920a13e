"""AttentionDrop for convolutional neural networks: what the notebooks export."""

__version__ = "0.1.0"

from .layers.attach import attach
from .layers.layers import AdaptiveMaskDrop2d, AttentionDrop2d, LinearSchedule, SoftMaskDrop2d
from .layers.layers import adaptive_mask_drop2d, attention_drop2d, soft_mask_drop2d
from .method.dropout import apply_mask, sample_gamma
from .training.resnet import PreActResNet18, ResNet18

__all__ = [
    "AdaptiveMaskDrop2d",
    "AttentionDrop2d",
    "LinearSchedule",
    "PreActResNet18",
    "ResNet18",
    "SoftMaskDrop2d",
    "adaptive_mask_drop2d",
    "apply_mask",
    "attach",
    "attention_drop2d",
    "sample_gamma",
    "soft_mask_drop2d",
]
