"""The papers in plain torch: modules, losses, corrections.

No ComfyUI, no training loops, no argument parsing.
"""
