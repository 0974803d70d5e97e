"""Eight small physical worlds, one per PILA category, and the tiny models trained on them."""
