"""One module a way: each its own process, from files on disk to every token's strongest features."""
