"""Networks, tasks (loss and error) and the plain training step."""
