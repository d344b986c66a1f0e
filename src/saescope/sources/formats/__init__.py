"""One file a format: a file of weights and its config in, tensors and an activation out, nothing else."""
