"""Settings in, one call, one sentence out: a file a command."""
