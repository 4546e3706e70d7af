"""The loop: serve, watch, decide, update, gate, stage, switch, bake, keep or roll back."""

from stillfit.loop.plan import Lane, Plan, Redeploy
from stillfit.loop.run import run

__all__ = ["Lane", "Plan", "Redeploy", "run"]
