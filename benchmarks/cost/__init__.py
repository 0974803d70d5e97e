"""Costs of guidance, the PILA adapter, the training objectives and the import of the pack."""
