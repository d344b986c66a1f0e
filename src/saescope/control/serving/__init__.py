"""Many requests on one model at once, each with its own edits."""
