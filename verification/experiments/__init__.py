"""Experiments: what the paper left open, measured against exact answers."""
