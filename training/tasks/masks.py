"""Settings of a fine-tune whose denoising loss counts where clips' masks are white."""

from __future__ import annotations

from pathlib import Path

from ..console import TrainingError


def check_masks(data: Path | None, masks: Path | None, least: float | None) -> None:
    """Raises TrainingError where cached clips (`data`), a folder of masks and `mask_min_value` do not go
    together: known before anything is read."""
    if masks is not None and data is not None:
        raise TrainingError(
            f"masks is {masks}, which is for caching, and the clips of {data} are cached; run latent-physics "
            f"cache with --masks."
        )
    if masks is not None and least is None:
        raise TrainingError(
            f"masks is {masks}, and mask_min_value is left out, without which masks have no effect; give it "
            f"(0: black does not count)."
        )
    if least is not None and data is None and masks is None:
        raise TrainingError(
            f"mask_min_value is {least:g} and there is no mask; give their folder with --masks, or leave it "
            f"out."
        )
