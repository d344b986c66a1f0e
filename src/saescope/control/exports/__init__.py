"""One file a format of other programs."""
