"""Whole studies: scenarios with lanes of rival strategies, set up to be compared fairly."""
