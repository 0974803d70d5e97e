"""The hot loops: each with a torch reference, a Triton twin and one dispatching function."""
