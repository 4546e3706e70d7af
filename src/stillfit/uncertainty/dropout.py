"""Monte-Carlo dropout: the network with features dropped at random, many times."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.seeds import Seeds
from stillfit.models.task import Task
from stillfit.models.tensors import RaggedTensor, Tensors
from stillfit.uncertainty.conversion import converted, is_plain, plain_network
from stillfit.uncertainty.dropping import dropped_layers
from stillfit.uncertainty.ensembles import features_of
from stillfit.uncertainty.layers import Draw, Masked, drawing
from stillfit.uncertainty.passes import CHUNK, Passes, checked_members


class MCDropout(Passes):
    """Dropout stays on in prediction: each pass drops features by a mask of its own.

    A feature is kept with probability 1 - `rate` and then divided by it. The masks of all
    `samples` passes are drawn once, from `seed`, and stored as a buffer: the same version gives
    the same answer, and all events of a pass see one function. Batch normalisation is off, its
    statistics stay. Features are dropped before all dense and convolution layers but the first
    of each chain; `last_only`: before the last of each chain alone (in a plain chain the rest is
    then computed once); `layers` names others. Of convolutions whole channels are dropped.

    Training drops at random anew: each row its own features; where several rows make one event
    (tracks), one draw for the whole batch, since noise of each row would average out.
    More `rate`: wider, and a weaker network. More `samples`: a finer mixture, more time.

    Cost: no parameters; `samples` passes. Rate 0 is the plain network.
    Source: Gal and Ghahramani 2016, arXiv:1506.02142.
    """

    def __init__(
        self,
        network: nn.Module,
        rate: float = 0.1,
        samples: int = 32,
        last_only: bool = False,
        seed: int = 0,
        layers: tuple[str, ...] | list[str] | None = None,
        chunk: int = CHUNK,
    ) -> None:
        if not 0 <= rate < 1:
            raise ConfigError(f"rate must be at least 0 and below 1, got {rate}")
        m = checked_members(samples, "samples")
        chosen = dropped_layers(network, layers, last_only)
        generator = torch.Generator().manual_seed(Seeds(seed).integer("masks"))

        def change(name: str, module: nn.Module) -> nn.Module | None:
            if name not in chosen or not is_plain(module):
                return None
            kept = torch.rand(m, features_of(module), generator=generator) >= rate
            return Masked(module, kept.float() / (1 - rate), rate)

        super().__init__(converted(network, change), m, chunk)
        self.rate, self.last_only, self.seed, self.layers = rate, last_only, seed, layers

    def loss(self, task: Task, inputs: Tensors, targets: Tensors) -> Tensor:
        with drawing(draw_of(inputs)):
            return task.loss(self.core, inputs, targets)

    def _fresh(self, task: Task, examples: Examples, seed: int) -> Passes:
        drawn = task.fresh(plain_network(self.core, None), examples, seed)
        return MCDropout(
            drawn, self.rate, self.n_passes, self.last_only, self.seed, self.layers, self.chunk
        )


def draw_of(inputs: Tensors) -> Draw:
    """Noise of each row's own, but one draw for all where several rows make one event."""
    ragged = any(isinstance(value, RaggedTensor) for value in inputs.values())
    return Draw.SHARED if ragged else Draw.LOCAL
