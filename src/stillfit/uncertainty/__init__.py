"""Ways to make a network state its uncertainty, calibrators that wrap any of them, and scores."""
