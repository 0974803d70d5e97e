"""PILA (arXiv 2606.04737): a physics adapter for frozen flow-matching video models.

adapter = PilaAdapter(PilaConfig())          # or load_adapter("pila.safetensors")[0]
adapter.correct(x0, step)                     # a correction of the denoised estimate
residual_terms(bank, "Fluid")                 # how far fields are from a category's laws
"""

from ..labels.taxonomy import CATEGORIES, TAXONOMY, Category, label_batch, label_vector
from .adapter import PilaAdapter, PilaOutput
from .config import TOY, PilaConfig
from .correction import PilaCorrection, PilaSettings
from .files import load_adapter, save_adapter
from .residuals import ResidualSettings, residual_terms
from .trace import PilaTrace, expert_maps

__all__ = [
    "CATEGORIES",
    "TAXONOMY",
    "TOY",
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
