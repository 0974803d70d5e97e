"""PILA's stages A, B and C as a task of the loop."""
