"""One module per comparison within one process; each prints its figures as a line of JSON."""
