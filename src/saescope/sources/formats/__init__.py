"""One file per format: weights and config in, tensors and an activation out."""
