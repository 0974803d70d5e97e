"""PILA: physics-informed latent alignment (arXiv 2606.04737)."""
