"""The toy world: its scores, its VAE, its encoders, guidance over strengths, and its gallery."""
