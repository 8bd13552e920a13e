"""AttentionDrop for convolutional neural networks: what the notebooks export."""

__version__ = "0.1.0"

from .adaptive import AdaptiveMaskDrop2d, adaptive_mask_drop2d
from .attentiondrop import AttentionDrop2d, attention_drop2d
from .dropout import LinearSchedule, apply_mask, sample_gamma
from .models import PreActResNet18, ResNet18, attach
from .soft import SoftMaskDrop2d, soft_mask_drop2d

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
