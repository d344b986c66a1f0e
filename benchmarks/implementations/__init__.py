"""One module per implementation: a process from files on disk to the top features per token."""
