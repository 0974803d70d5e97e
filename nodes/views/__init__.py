"""Tensors to pictures and tables. No sampling, no loading."""
