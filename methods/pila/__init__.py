"""PILA (arXiv 2606.04737): a physics adapter for frozen flow-matching video models.

adapter = PilaAdapter(PilaConfig())          # or load_adapter("pila.safetensors")[0]
adapter.correct(x0, step)                     # a correction of the denoised estimate
residual_terms(bank, "Fluid")                 # how far fields are from a category's laws
"""

from ..labels.taxonomy import CATEGORIES, TAXONOMY, Category, label_batch, label_vector
from .adapter import PilaAdapter, PilaOutput, load_adapter, save_adapter
from .config import ABLATIONS, TOY, Ablation, PilaConfig
from .correction import PilaCorrection, PilaSettings, PilaTrace, expert_maps
from .residuals import ResidualSettings, residual_terms

__all__ = [
    "ABLATIONS",
    "CATEGORIES",
    "TAXONOMY",
    "TOY",
    "Ablation",
    "Category",
    "PilaAdapter",
    "PilaConfig",
    "PilaCorrection",
    "PilaOutput",
    "PilaSettings",
    "PilaTrace",
    "ResidualSettings",
    "expert_maps",
    "label_batch",
    "label_vector",
    "load_adapter",
    "residual_terms",
    "save_adapter",
]
