"""A grammar that says the same meanings in six languages."""
