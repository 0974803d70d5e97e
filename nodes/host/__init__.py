"""The border to ComfyUI: patching, taps, files, latents, endpoints. No node schemas."""
