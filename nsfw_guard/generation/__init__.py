"""Batch generation with a guard: prompts in, images that may be shown out, and a log of every decision."""
