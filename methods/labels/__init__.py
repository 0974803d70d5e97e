"""Which kinds of physics a prompt is about: the taxonomy, rules, and an LLM's answer."""
