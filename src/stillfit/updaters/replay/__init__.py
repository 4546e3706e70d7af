"""Replay: learn on with remembered, or remembered and generated, events."""

from stillfit.updaters.replay.buffer import Buffer, pack, unpack
from stillfit.updaters.replay.dark import DarkReplay
from stillfit.updaters.replay.experience import Replay
from stillfit.updaters.replay.gdumb import GDumb
from stillfit.updaters.replay.generative import GenerativeReplay
from stillfit.updaters.replay.keep import Hard, Held, Keep, Reservoir, Ring, reservoir_slots

__all__ = [
    "Buffer",
    "DarkReplay",
    "GDumb",
    "GenerativeReplay",
    "Hard",
    "Held",
    "Keep",
    "Replay",
    "Reservoir",
    "Ring",
    "pack",
    "reservoir_slots",
    "unpack",
]
