"""Activity networks: a small 1-D convolutional network on raw windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillfit.core.errors import ConfigError, ShapeError
from stillfit.models.model import Factory
from stillfit.models.networks import MLP, Standardise


class Signals(Standardise):
    """Flat rows (n, channels * time), or windows (n, channels, time), as scaled windows.

    The tasks of `models.task` hand features over as a matrix, so a window column arrives flat.
    One mean and one deviation per channel: all times of a window are alike.
    """

    def __init__(self, channels: int, time: int) -> None:
        super().__init__(channels)
        self.channels, self.time = channels, time

    def set_from(self, x: NDArray[np.float32]) -> None:
        """Take the scales from training windows, flat or not."""
        windows = x.reshape(len(x), self.channels, self.time)
        super().set_from(windows.transpose(0, 2, 1).reshape(-1, self.channels))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] not in ((self.channels * self.time,), (self.channels, self.time)):
            raise ShapeError(
                f"the network takes windows of {self.channels} channels x {self.time} samples, "
                f"got rows of shape {tuple(x.shape[1:])}; were the windows cut with another "
                "length or rate?"
            )
        windows = x.reshape(len(x), self.channels, self.time)
        return (windows - self.mean[:, None]) / self.std[:, None]


class Convolution(nn.Conv1d):
    """A convolution that keeps the length and knows it, so that its arithmetic can be counted.

    `positions`: outputs along time, each of which costs taps x in x out multiply-accumulates.
    """

    def __init__(self, before: int, after: int, kernel: int, positions: int) -> None:
        super().__init__(before, after, kernel, padding=kernel // 2)
        self.positions = positions


class ActivityCNN(nn.Module):
    """Convolutions of `kernel` samples with ReLU, halved in time between, mean over time, linear.

    Input: windows of `channels` x `time` samples, flat or not; output: (n, `classes`) logits. The
    scales of the channels are buffers. No batch normalisation: its running statistics would be a
    second memory that drifts with the stream. The mean over time makes the answer depend little
    on where in the window a motion lies.

    With the defaults 8 405 parameters (34 kB in float32) and 150 k multiply-accumulates per
    window; more `filters` know more and cost in proportion. `seed` draws the first weights.
    Source of the kind: Yang et al. 2015, IJCAI (convolutions along time on inertial channels).
    """

    def __init__(
        self,
        channels: int = 6,
        time: int = 50,
        classes: int = 5,
        filters: Sequence[int] = (16, 32, 32),
        kernel: int = 5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(channels, classes, *filters, len(filters)) < 1 or kernel < 1 or kernel % 2 == 0:
            raise ConfigError(
                f"an activity network needs channels, classes and filters of at least 1 and an "
                f"odd kernel, got {channels}, {classes}, {tuple(filters)} and {kernel}"
            )
        if time >> (len(filters) - 1) < 1:
            raise ConfigError(
                f"{time} samples cannot be halved {len(filters) - 1} times between "
                f"{len(filters)} layers; take longer windows or fewer layers"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = [Signals(channels, time)]
            for number, (before, after) in enumerate(pairwise([channels, *filters])):
                if number:
                    layers.append(nn.MaxPool1d(2))
                layers += [Convolution(before, after, kernel, time >> number), nn.ReLU()]
            layers += [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(filters[-1], classes)]
            self.layers = nn.Sequential(*layers)

    def set_scales(self, x: NDArray[np.float32], y: NDArray[np.float64] | None = None) -> None:
        """Scale the channels from training windows, (n, channels * time) or with its own axes."""
        scale = self.layers[0]
        assert isinstance(scale, Signals)
        scale.set_from(x)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


FACTORIES: Mapping[str, Factory] = {
    "sensing.cnn": ActivityCNN,
    "sensing.mlp": MLP,  # on features: features, hidden, outputs
}
"""The activity networks by the names under which stored versions know them."""
