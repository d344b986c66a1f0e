"""saescope beside what else computes the same features, on this machine."""
