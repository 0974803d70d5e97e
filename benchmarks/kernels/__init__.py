"""The kernels against their definitions, a peer's formula and the machine's own limits."""
