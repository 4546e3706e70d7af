"""Keeps a deployed machine-learning model still fit, and still fitting its chip."""

__version__ = "0.1.0"
