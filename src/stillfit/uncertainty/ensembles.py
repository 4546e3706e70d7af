"""Ensembles: networks of their own, and cheaper relatives that share most of their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.seeds import Seeds
from stillfit.models.networks import reinitialised
from stillfit.models.task import Task
from stillfit.models.tensors import Tensors
from stillfit.models.uncertain import chosen, folded, n_events
from stillfit.uncertainty.conversion import (
    converted,
    is_plain,
    members,
    plain_network,
    require_plain,
)
from stillfit.uncertainty.dropping import dropped_layers
from stillfit.uncertainty.layers import Masked, Plain, Source, Weights, layer_of
from stillfit.uncertainty.passes import CHUNK, Passes, checked_members, over_members


class DeepEnsemble(Passes):
    """Networks that differ by their initial weights, as one.

    Prediction: the mixture of the members' distributions with equal weights, so their
    disagreement is part of the variance (law of total variance). Each member's gradient is that
    of training it alone; the loss that is reported is their mean.

    `resample`: each member draws its own events, with replacement, from each batch, so that they
    differ by their data too; off, as the paper found it of no use. `seed`: of the initial
    weights; member k of a fresh ensemble is the plain network that is drawn from
    `member_seed(seed, k)`. `chunk`: see `Passes`.

    Cost: parameters, multiply-accumulates and training steps times `members`.
    Source: Lakshminarayanan et al. 2017, arXiv:1612.01474 (without its adversarial examples).
    """

    def __init__(
        self,
        network: nn.Module,
        members: int = 5,
        seed: int = 0,
        resample: bool = False,
        chunk: int = CHUNK,
    ) -> None:
        m = checked_members(members)
        require_plain(network)
        twins = [reinitialised(network, member_seed(seed, k)) for k in range(m)]
        super().__init__(_stacked(twins), m, chunk)
        self.resample = resample

    @classmethod
    def of(
        cls, networks: list[nn.Module], *, resample: bool = False, chunk: int = CHUNK
    ) -> DeepEnsemble:
        """Networks of one architecture, trained or not, as the members; they are copied.

        Buffers, batch-norm statistics apart, must agree: scales and calibrations are common.
        """
        made = cls.__new__(cls)
        Passes.__init__(made, _stacked(networks), checked_members(len(networks)), chunk)
        made.resample = resample
        return made

    def loss(self, task: Task, inputs: Tensors, targets: Tensors) -> Tensor:
        if self.resample:
            mean = self._over_resampled(task, inputs, targets)
        else:
            mean = over_members(self, task, inputs, targets)
        # The gradient of the sum, the value of the mean.
        return mean.detach() + self.n_passes * (mean - mean.detach())

    def _over_resampled(self, task: Task, inputs: Tensors, targets: Tensors) -> Tensor:
        n = n_events(inputs)
        losses = []
        for k in range(self.n_passes):
            mine = torch.randint(n, (n,))
            with folded(slice(k, k + 1)):
                losses.append(task.loss(self.core, chosen(inputs, mine), chosen(targets, mine)))
        return torch.stack(losses).mean()

    def _fresh(self, task: Task, examples: Examples, seed: int) -> Passes:
        plain = self.member(0)
        seeds = [member_seed(seed, k) for k in range(self.n_passes)]
        drawn = [task.fresh(plain, examples, own) for own in seeds]
        return DeepEnsemble.of(drawn, resample=self.resample, chunk=self.chunk)


def _stacked(networks: list[nn.Module]) -> nn.Module:
    first = networks[0].state_dict()
    for network in networks[1:]:
        if {k: v.shape for k, v in network.state_dict().items()} != {
            k: v.shape for k, v in first.items()
        }:
            raise ConfigError("the members of an ensemble must be of one architecture")
    return members(networks)


def member_seed(seed: int, k: int) -> int:
    """The seed of the initial weights of member `k`."""
    return Seeds(seed).integer("member", k)


class RankOne(Source):
    """Shared weights times an outer product of each member's own: W * s_k r_k^T, and biases."""

    def __init__(self, like: Plain, members: int, generator: torch.Generator) -> None:
        super().__init__()
        out, inputs = like.weight.shape[:2]

        def signs(features: int) -> Tensor:
            return torch.randint(0, 2, (members, features), generator=generator) * 2.0 - 1

        self.weight = nn.Parameter(like.weight.detach().clone())
        self.inward = nn.Parameter(signs(inputs))
        self.outward = nn.Parameter(signs(out))
        bias = like.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().repeat(members, 1))

    def weights(self, passes: slice) -> Weights:
        factor = self.outward[passes, :, None] * self.inward[passes, None, :]
        if self.weight.ndim > 2:
            factor = factor[..., None]
        return factor * self.weight, None if self.bias is None else self.bias[passes]

    def alone(self) -> Weights:
        weight, bias = self.weights(slice(0, 1))
        return weight[0], None if bias is None else bias[0]


class BatchEnsemble(Passes):
    """Members that share each layer's weights W but for factors of rank one: W * s_k r_k^T.

    The factors start as random signs, so that members differ from the first step; biases are the
    members' own. Parameters outside dense and convolution layers are shared. `split`: each
    member sees its share of a batch only, at the training cost of one network; else all members
    see all of it. `seed`: of the signs. `chunk`: see `Passes`.

    Cost: parameters (in + 2 out) per member and layer beside W; multiply-accumulates and time of
    a prediction times `members`.
    Source: Wen et al. 2020, arXiv:2002.06715.
    """

    def __init__(
        self,
        network: nn.Module,
        members: int = 4,
        seed: int = 0,
        split: bool = False,
        chunk: int = CHUNK,
    ) -> None:
        m = checked_members(members)
        generator = torch.Generator().manual_seed(Seeds(seed).integer("signs"))

        def change(name: str, module: nn.Module) -> nn.Module | None:
            return layer_of(RankOne(module, m, generator), module) if is_plain(module) else None

        super().__init__(converted(network, change), m, chunk)
        self.split = split

    def loss(self, task: Task, inputs: Tensors, targets: Tensors) -> Tensor:
        return over_members(self, task, inputs, targets, self.split)

    def _fresh(self, task: Task, examples: Examples, seed: int) -> Passes:
        drawn = task.fresh(plain_network(self.core, None), examples, seed)
        return BatchEnsemble(drawn, self.n_passes, seed, self.split, self.chunk)


class Masksembles(Passes):
    """Members that are parts of one network: each drops features by a fixed mask.

    Masks lie on the inputs of all dense and convolution layers but the first of each chain
    (`layers` names others). `scale` >= 1: how little masks overlap; each keeps a share of about
    1 / (scale (1 - (1 - 1 / scale)^members)) of the features, and every feature is in some mask.
    At 1 all masks are full and the members one network; a large scale parts them, as an ensemble
    of small networks. Nothing is drawn at inference. `split`: see `BatchEnsemble`. `seed`: of
    the masks. `chunk`: see `Passes`.

    Cost: no parameters; multiply-accumulates and time of a prediction times `members`, less on
    a chip, which need not compute what is masked (`member(k)` has it as zero weights).
    Source: Durasov et al. 2021, arXiv:2012.08334.
    """

    def __init__(
        self,
        network: nn.Module,
        members: int = 4,
        scale: float = 2.0,
        seed: int = 0,
        layers: tuple[str, ...] | list[str] | None = None,
        split: bool = False,
        chunk: int = CHUNK,
    ) -> None:
        m = checked_members(members)
        if not scale >= 1:
            raise ConfigError(f"scale must be 1 or more, got {scale}; at 1 all masks are full")
        chosen_layers = dropped_layers(network, layers)
        generator = torch.Generator().manual_seed(Seeds(seed).integer("masks"))

        def change(name: str, module: nn.Module) -> nn.Module | None:
            if name not in chosen_layers or not is_plain(module):
                return None
            features = features_of(module)
            return Masked(module, overlapping_masks(features, m, scale, generator))

        super().__init__(converted(network, change), m, chunk)
        self.scale, self.seed, self.layers, self.split = scale, seed, layers, split

    def loss(self, task: Task, inputs: Tensors, targets: Tensors) -> Tensor:
        return over_members(self, task, inputs, targets, self.split)

    def _fresh(self, task: Task, examples: Examples, seed: int) -> Passes:
        drawn = task.fresh(plain_network(self.core, None), examples, seed)
        m, chunk = self.n_passes, self.chunk
        return Masksembles(drawn, m, self.scale, self.seed, self.layers, self.split, chunk)


def features_of(layer: Plain) -> int:
    """Columns, or channels, of what enters a layer."""
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def overlapping_masks(
    features: int, members: int, scale: float, generator: torch.Generator
) -> Tensor:
    """Masks (members, features) of 0 and 1 with one number of ones, which together cover all.

    As if each mask chose its ones among `scale` times as many places and the places that no mask
    chose were dropped. In the rare case that no such draw has exactly `features` places, features
    left over replace ones that other masks hold too.
    """
    covered = 1 - (1 - 1 / scale) ** members
    ones = min(features, max(1, round(features / (scale * covered))))
    ones = max(ones, -(-features // members))
    places = max(ones, round(ones * scale))
    for _ in range(200):
        keys = torch.rand(members, places, generator=generator)
        masks = torch.zeros(members, places).scatter(1, keys.argsort(1)[:, :ones], 1.0)
        used = masks.any(0)
        if int(used.sum()) == features:
            return masks[:, used]
    keys = torch.rand(members, features, generator=generator)
    masks = torch.zeros(members, features).scatter(1, keys.argsort(1)[:, :ones], 1.0)
    for feature in torch.nonzero(masks.sum(0) == 0)[:, 0].tolist():
        crowded = int(masks.sum(0).argmax())
        holder = int(masks[:, crowded].argmax())
        masks[holder, crowded], masks[holder, feature] = 0.0, 1.0
    return masks
