"""Adapters: each imports its own host, and the core by its absolute name."""
