"""Benchmarks of `latent-physics evaluate`."""
