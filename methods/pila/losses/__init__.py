"""Losses of PILA's training: recovery of the bank, the masked objective, residual weights."""
