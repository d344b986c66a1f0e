"""Features on disk: tables, runs, and which positions of them count. Imports no torch."""
