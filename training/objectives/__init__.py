"""Losses added to denoising, a file a paper."""
