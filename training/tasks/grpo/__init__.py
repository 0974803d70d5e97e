"""`latent-physics grpo`: a video model that samples, is judged, and learns from the judgement."""
