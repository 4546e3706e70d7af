"""Wearable sensors: recordings, windows, activity networks, environments as streams."""
