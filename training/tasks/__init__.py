"""What is trained: a module, its phases, its batches, its metrics. No loop."""
