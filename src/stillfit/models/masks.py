"""Masks over weights: which of them a condition owns, which are free, and training under a mask."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stillfit.core.arrays import Array
from stillfit.core.errors import ConfigError, ShapeError
from stillfit.core.tables import did_you_mean
from stillfit.models.training import Guide

PLACES = 255  # owners are bytes, 0 is free


def maskable(network: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable weight matrices by name: a weight of 0 there is a connection that is not.

    Parameters named `weight` with two axes or more (dense and convolution layers, those of
    ensembles with one more axis). Biases, normalisation, tables and what a method of uncertainty
    keeps beside its weights are not, because 0 does not switch them off.
    """
    return {
        name: parameter
        for name, parameter in network.named_parameters()
        if parameter.ndim >= 2 and parameter.requires_grad and name.split(".")[-1] == "weight"
    }


class Masking(Guide):
    """Training in which only some numbers of some parameters move; all others stay bit for bit.

    `trainable`: boolean tensors by parameter name, True where a number may move. Parameters that
    are not named move freely if `rest`, else not at all. With `keep` (a count by name) the
    trainable numbers of each parameter are pruned once, after `prune_at` steps: the `keep` largest
    magnitudes stay trainable, the others become 0 and stay 0. `prune_at=0` prunes the network as
    it stands, before the first step. Serves one training of one network.
    """

    def __init__(
        self,
        network: nn.Module,
        trainable: Mapping[str, Tensor],
        *,
        rest: bool = True,
        keep: Mapping[str, int] | None = None,
        prune_at: int = 0,
    ) -> None:
        named = dict(network.named_parameters())
        moving = {name: mask.clone() for name, mask in trainable.items()}
        if not rest:
            for name, value in named.items():
                moving.setdefault(name, torch.zeros_like(value, dtype=torch.bool))
        self.trainable = moving
        self._keep, self._prune_at, self._step = dict(keep or {}), prune_at, 0
        self._parameters = {name: named[name] for name in moving}
        self._held = {name: value.detach().clone() for name, value in self._parameters.items()}
        if prune_at == 0:
            self._prune()

    def before(self, network: nn.Module) -> None:
        for name, value in self._parameters.items():
            if value.grad is not None:
                value.grad.mul_(self.trainable[name])

    @torch.no_grad()
    def after(self, network: nn.Module) -> None:
        self._step += 1
        for name, value in self._parameters.items():
            value.copy_(torch.where(self.trainable[name], value, self._held[name]))
        if self._step == self._prune_at:
            self._prune()

    @torch.no_grad()
    def _prune(self) -> None:
        for name, keep in self._keep.items():
            value, moving = self._parameters[name], self.trainable[name]
            kept = largest(value.detach(), moving, keep)
            value.masked_fill_(moving & ~kept, 0.0)
            self._held[name].masked_fill_(moving & ~kept, 0.0)
            self.trainable[name] = kept


def largest(value: Tensor, among: Tensor, keep: int) -> Tensor:
    """A mask of the `keep` largest magnitudes where `among` is True; of equals the first."""
    size = value.abs().double().masked_fill(~among, -1.0).flatten()
    order = torch.sort(size, descending=True, stable=True).indices[: min(keep, int(among.sum()))]
    mask = torch.zeros(value.numel(), dtype=torch.bool)
    mask[order] = True
    return mask.reshape(value.shape)


@dataclass(frozen=True, kw_only=True)
class Place:
    """What one condition has in a pre-allocated network.

    `number`: the owner's code in the masks, 1 to 255. `sees`: numbers of the places whose weights
    it uses besides its own. `error`, `spread`, `events`: mean and standard deviation of the
    task's error at the time, and over how many events. `served`: the update at which it was last
    put to use. `living`: False where it was freed but others still use its weights.
    """

    name: str
    number: int
    sees: tuple[int, ...] = ()
    error: float = 0.0
    spread: float = 0.0
    events: int = 0
    served: int = 0
    living: bool = True


@dataclass(frozen=True)
class Bank:
    """A pre-allocated network with the weights of all its conditions. A value: never changed.

    `weights`: the masked weights by parameter name, 0 where free. `owners`: the number of the
    place that owns each weight, 0 where free, uint8. `own`: by place, all numbers of the network
    outside the masks (biases, scales, tables), which each condition has for itself.
    """

    weights: Mapping[str, Array]
    owners: Mapping[str, NDArray[np.uint8]]
    places: tuple[Place, ...] = ()
    own: Mapping[int, Mapping[str, Array]] = field(default_factory=dict)

    @classmethod
    def of(cls, network: nn.Module) -> Bank:
        """Nothing allocated yet: every weight matrix of the network is free."""
        found = maskable(network)
        if not found:
            raise ConfigError(
                f"{type(network).__name__} has no weight matrix that a mask could share out; "
                "masks need dense or convolution layers with trainable weights"
            )
        empty = {name: np.zeros_like(value.detach().numpy()) for name, value in found.items()}
        return cls(empty, {name: np.zeros(value.shape, np.uint8) for name, value in empty.items()})

    @property
    def total(self) -> int:
        """Weights under masks."""
        return sum(owner.size for owner in self.owners.values())

    @property
    def free(self) -> int:
        """Weights that no condition owns."""
        return sum(int((owner == 0).sum()) for owner in self.owners.values())

    @property
    def living(self) -> tuple[Place, ...]:
        """The conditions that can be served."""
        return tuple(place for place in self.places if place.living)

    def owned(self, number: int) -> int:
        """Weights that belong to a place."""
        return sum(int((owner == number).sum()) for owner in self.owners.values())

    def told(self) -> str:
        """Who has what, for a refusal."""
        parts = [f"{self.owned(p.number):,} by {p.name!r}" for p in self.places]
        held = f", {', '.join(parts)}" if parts else ""
        return f"{self.free:,} of {self.total:,} weights are free{held}"

    def require(self, network: nn.Module) -> None:
        """`ShapeError` where the network is not the one that was shared out."""
        have = {name: tuple(value.shape) for name, value in maskable(network).items()}
        want = {name: value.shape for name, value in self.weights.items()}
        if have != want:
            differ = sorted(n for n in {*have, *want} if have.get(n) != want.get(n))
            raise ShapeError(
                f"the masks in the learner's state are of another network: {', '.join(differ)} "
                "differ; did another updater change the architecture? begin anew"
            )

    def place(self, name: str) -> Place:
        """The living place of that name; `ConfigError` names those that there are."""
        for place in self.living:
            if place.name == name:
                return place
        known = [place.name for place in self.living]
        raise ConfigError(f"no condition {name!r} has a mask{did_you_mean(name, known)}")

    def mask(self, name: str, numbers: Sequence[int]) -> NDArray[np.bool_]:
        """Where a parameter's weights belong to one of some places."""
        found: NDArray[np.bool_] = np.isin(self.owners[name], np.array(numbers, np.uint8))
        return found

    def under(self, place: Place) -> dict[str, Array]:
        """Every number of the network that serves a place: what `Model.with_weights` takes."""
        numbers = (*place.sees, place.number)
        masked = {
            name: np.where(self.mask(name, numbers), value, value.dtype.type(0))
            for name, value in self.weights.items()
        }
        return {**self.own.get(place.number, {}), **masked}

    def number(self) -> int | None:
        """The lowest number that no place has, None where all are taken."""
        taken = {place.number for place in self.places}
        return next((n for n in range(1, PLACES + 1) if n not in taken), None)

    def allocate(
        self, place: Place, state: Mapping[str, Array], kept: Mapping[str, NDArray[np.bool_]]
    ) -> Bank:
        """The bank with a new place: it owns the weights of `state` where `kept`, all else of
        `state` that lies outside the masks is its own. Weights that another owns are not touched.
        """
        weights, owners = {}, {}
        for name, value in self.weights.items():
            mine = kept[name] & (self.owners[name] == 0)
            weights[name] = np.where(mine, state[name], value)
            owners[name] = np.where(mine, np.uint8(place.number), self.owners[name])
        own = {name: np.array(v) for name, v in state.items() if name not in self.weights}
        return Bank(weights, owners, (*self.places, place), {**self.own, place.number: own})

    def use(self, place: Place, served: int) -> Bank:
        """The bank in which a place was put to use at that update."""
        places = tuple(
            replace(p, served=served) if p.number == place.number else p for p in self.places
        )
        return replace(self, places=places)

    def leaves(self) -> tuple[Place, ...]:
        """Living places whose weights nobody else uses: freeing one gives its room back."""
        seen = {number for place in self.places for number in place.sees}
        return tuple(place for place in self.living if place.number not in seen)

    def without(self, place: Place) -> Bank:
        """The bank after a condition was freed.

        What is its own goes; its weights are free again where no other place uses them, else they
        stay, bit for bit, until the last user is freed.
        """
        own = {number: values for number, values in self.own.items() if number != place.number}
        places = [replace(p, living=p.living and p.number != place.number) for p in self.places]
        while True:  # a place that nobody uses any more may have been the last user of another
            seen = {number for p in places for number in p.sees}
            stay = [p for p in places if p.living or p.number in seen]
            if len(stay) == len(places):
                break
            places = stay
        keep = np.array([p.number for p in places], np.uint8)
        weights, owners = {}, {}
        for name, owner in self.owners.items():
            held = np.isin(owner, keep)
            owners[name] = np.where(held, owner, np.uint8(0))
            weights[name] = np.where(held, self.weights[name], self.weights[name].dtype.type(0))
        return Bank(weights, owners, tuple(places), own)

    def to_arrays(self) -> dict[str, Array]:
        """Plain named arrays, as learner states hold them; `from_arrays` inverts it."""
        text = json.dumps([asdict(place) for place in self.places]).encode()
        flat: dict[str, Array] = {"places": np.frombuffer(text, np.uint8).copy()}
        for name, value in self.weights.items():
            flat[f"weights/{name}"] = value
            flat[f"owners/{name}"] = self.owners[name]
        for number, values in self.own.items():
            flat.update({f"own/{number}/{name}": value for name, value in values.items()})
        return flat

    @classmethod
    def from_arrays(cls, flat: Mapping[str, Array]) -> Bank | None:
        """The bank that `to_arrays` wrote; None where there is none."""
        if "places" not in flat:
            return None
        told = json.loads(flat["places"].tobytes())
        places = tuple(Place(**{**one, "sees": tuple(one["sees"])}) for one in told)
        weights, owners = _under(flat, "weights/"), _under(flat, "owners/")
        own = {place.number: _under(flat, f"own/{place.number}/") for place in places}
        return cls(weights, owners, places, {n: values for n, values in own.items() if values})


def _under(flat: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name[len(prefix) :]: part for name, part in flat.items() if name.startswith(prefix)}
