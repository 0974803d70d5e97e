"""Programs that measure: kernels, what methods cost, what PILA and the toy world do. `run.py` lists them."""
