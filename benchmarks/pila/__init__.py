"""PILA: its residuals on lawful fields, its prompt rules, and what the adapter does to the toy world."""
