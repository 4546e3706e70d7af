"""The networks of the benchmark scenarios, by the names under which versions would be stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import nn

from stillfit.models.model import Factory
from stillfit.sensing.networks import FACTORIES as SENSING
from stillfit.studies.dead_regions import FACTORIES as TRACKS


class PixelNetwork(nn.Sequential):
    """Dense ReLU layers on pixels between 0 and 1, which are not standardised.

    A pixel that is almost always black in the first experience would have a deviation near 0 and
    blow up in the next one. `seed` draws the first weights; `dropout`: share of the pixels that a
    training pass does not see.
    """

    def __init__(
        self,
        pixels: int = 784,
        hidden: Sequence[int] = (400, 400),
        classes: int = 10,
        seed: int = 0,
        dropout: float = 0.0,
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
            for before, after in pairwise([pixels, *hidden]):
                layers += [nn.Linear(before, after), nn.ReLU()]
            super().__init__(*layers, nn.Linear([pixels, *hidden][-1], classes))


FACTORIES: Mapping[str, Factory] = {"studies.pixels": PixelNetwork, **TRACKS, **SENSING}
