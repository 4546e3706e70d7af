"""From the serving model and data to a candidate: retraining and continual learning."""
