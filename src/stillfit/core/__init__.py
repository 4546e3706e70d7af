"""Frozen value types, errors, clock, seeds and strict tables. Knows nothing above it."""
