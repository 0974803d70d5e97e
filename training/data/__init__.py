"""Videos to clips to batches: the only reader and the only writer of cached clips."""
