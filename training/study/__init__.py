"""Arms, one table, paired intervals."""
