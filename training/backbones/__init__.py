"""Backbones: what the trainer fine-tunes. One file per family; the toy backbone is the wan family at another size."""
