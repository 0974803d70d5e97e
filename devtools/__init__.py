"""Parts of dev.py: the environment, ComfyUI's releases, a server and its client. Standard library
only.

Nothing here is packaged; the tests use the same server and client through `latent_physics.devtools`.
"""
