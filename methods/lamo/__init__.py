"""LaMo: latent motion priors (arXiv 2605.23878). The motion field predictor, the guidance that samples with it, the heatmaps."""

from .guidance import GuidanceTrace, MotionPriorGuidance, TraceRow, guidance_loss
from .heatmaps import drift_heatmap, field_heatmap
from .predictor import MotionFieldPredictor, pool_tokens, predictor_loss
from .weights import KIND, load_predictor, predictor_info, save_predictor

__all__ = [
    "KIND",
    "GuidanceTrace",
    "MotionFieldPredictor",
    "MotionPriorGuidance",
    "TraceRow",
    "drift_heatmap",
    "field_heatmap",
    "guidance_loss",
    "load_predictor",
    "pool_tokens",
    "predictor_info",
    "predictor_loss",
    "save_predictor",
]
