"""Subjects of training: a module, its phases, its batches, its metrics. No loop."""
