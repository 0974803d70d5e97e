"""LaMo: latent motion priors (arXiv 2605.23878). The motion field predictor, the guidance that samples with
it, the heatmaps."""

from .bound import largest_eigenvalue, stable_step
from .guidance import WINDOWS, MotionPriorGuidance, guidance_loss
from .heatmaps import drift_heatmap, field_heatmap, motion_amount
from .predictor import MotionFieldPredictor, pool_tokens, predictor_loss
from .trace import GuidanceTrace, TraceRow
from .weights import KIND, load_predictor, predictor_info, save_predictor

__all__ = [
    "KIND",
    "WINDOWS",
    "GuidanceTrace",
    "MotionFieldPredictor",
    "MotionPriorGuidance",
    "TraceRow",
    "drift_heatmap",
    "field_heatmap",
    "guidance_loss",
    "largest_eigenvalue",
    "load_predictor",
    "motion_amount",
    "pool_tokens",
    "predictor_info",
    "predictor_loss",
    "save_predictor",
    "stable_step",
]
