"""Regularisation: what old conditions need is held while a new one is learned.

No old events are kept, nothing is added to the network: inference costs what it did.
"""

from stillfit.updaters.regularisation.ewc import EWC, OnlineEWC
from stillfit.updaters.regularisation.intelligence import SynapticIntelligence
from stillfit.updaters.regularisation.lwf import LwF
from stillfit.updaters.regularisation.mas import MAS

__all__ = ["EWC", "MAS", "LwF", "OnlineEWC", "SynapticIntelligence"]
