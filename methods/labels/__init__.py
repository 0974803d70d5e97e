"""Kinds of physics that a prompt is about: the taxonomy, rules, and an LLM's answer."""
