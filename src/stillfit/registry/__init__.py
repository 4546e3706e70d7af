"""Versions and journal: append-only, content-addressed, atomic switch and rollback."""
