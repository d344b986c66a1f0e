"""One module a question that is asked within one process: each prints its figures as a JSON line."""
