"""What PILA is trained with: recovery of the bank, the masked objective, residual weights."""
