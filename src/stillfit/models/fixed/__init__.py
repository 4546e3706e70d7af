"""Fixed-point networks: fake quantisation for training, and exact models in whole numbers."""
