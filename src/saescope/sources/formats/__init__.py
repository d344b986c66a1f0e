"""One file a format: a checkpoint file in, named tensors out, nothing else."""
