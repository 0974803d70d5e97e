"""Bundled training scripts: `python training --help` from a bare clone, `latent-physics` once installed."""
