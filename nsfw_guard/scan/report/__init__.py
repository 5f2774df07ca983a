"""The page about a scan: one HTML file that needs nothing else."""
