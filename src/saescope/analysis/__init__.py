"""Features to findings: statistics over stored runs. Imports no torch."""
