"""Text to features: the only room that runs a model."""
