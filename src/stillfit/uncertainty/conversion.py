"""Any network with some of its layers replaced, and back: the user's own forward stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from stillfit.core.errors import ConfigError
from stillfit.models.networks import WithNoise, copy_network
from stillfit.models.uncertain import HasMembers, Uncertain, passes_now, per_row
from stillfit.uncertainty.layers import PassLayer, PassSequential, Plain, Stacked, grouped, layer_of

Change = Callable[[str, nn.Module], nn.Module | None]


def is_plain(module: nn.Module) -> TypeGuard[Plain]:
    """Whether a module is a dense or 1-D convolution layer with PyTorch's own forward."""
    return (isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward) or (
        isinstance(module, nn.Conv1d) and type(module).forward is nn.Conv1d.forward
    )


def converted(network: nn.Module, change: Change) -> nn.Module:
    """A copy in which `change(name, module)` replaces modules; None leaves one and looks inside.

    `ConfigError` for a network that already answers by passes, and for parameters that two
    modules share, which a replacement would part.
    """
    require_plain(network)
    owners: dict[int, nn.Module] = {}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if owners.setdefault(id(parameter), module) is not module:
                raise ConfigError(
                    f"{type(module).__name__}.{name} is shared with another module; layers that "
                    "share parameters cannot be replaced one by one: share the module instead"
                )
    return _walk(copy_network(network), change, "", {})


def require_plain(network: nn.Module) -> None:
    """`ConfigError` for a network that has been converted before."""
    for module in network.modules():
        if isinstance(module, Uncertain | PassLayer):
            raise ConfigError(
                f"the network already states its uncertainty by {type(module).__name__}; "
                "convert the plain network, and choose one method of several passes"
            )


def _walk(module: nn.Module, change: Change, name: str, done: dict[int, nn.Module]) -> nn.Module:
    if id(module) in done:
        return done[id(module)]
    new = change(name, module)
    if new is None:
        new = module
        for key, child in list(module._modules.items()):
            if child is not None:
                below = f"{name}.{key}" if name else key
                module._modules[key] = _walk(child, change, below, done)
        if type(module) is nn.Sequential:
            module.__class__ = PassSequential
    done[id(module)] = new
    return new


def plain_network(core: nn.Module, k: int | None) -> nn.Module:
    """The network of pass `k` (None: the one that stands for all) without layers of this room."""

    def back(name: str, module: nn.Module) -> nn.Module | None:
        if isinstance(module, PassLayer | MemberModule | MemberNorm) or _has_plain(module):
            single: nn.Module = module.plain(k)
            return single
        return None

    return _unwalk(copy_network(core), back, k)


def _has_plain(module: nn.Module) -> TypeGuard[Any]:
    return callable(getattr(module, "plain", None)) and callable(getattr(module, "put", None))


def _unwalk(core: nn.Module, back: Change, k: int | None) -> nn.Module:
    twin = _walk(core, back, "", {})
    for module in twin.modules():
        if isinstance(module, PassSequential):
            module.__class__ = nn.Sequential  # type: ignore[assignment]
        elif isinstance(module, MemberNoise):
            module.__class__ = WithNoise  # type: ignore[assignment]
            module.log_variance = nn.Parameter(module.log_variance.detach()[k or 0].clone())
    return twin


class MemberNoise(WithNoise):
    """`WithNoise` with a log-variance of each member's own."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network(x)
        mean = out.reshape(-1)
        return torch.stack([mean, per_row(self.log_variance, len(mean)).expand_as(mean)], 1)


class MemberNorm(nn.Module):
    """Batch or layer normalisation of each member's own: statistics of its own rows alone."""

    def __init__(self, layers: Sequence[nn.BatchNorm1d] | Sequence[nn.LayerNorm]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        passes = passes_now()
        if passes is None:
            alone: Tensor = self.layers[0](x)
            return alone
        mine = list(self.layers)[passes]
        groups = grouped(x, len(mine))
        return torch.cat([layer(group) for layer, group in zip(mine, groups, strict=True)])

    def plain(self, k: int | None) -> nn.Module:
        """Member `k`'s."""
        return copy_network(self.layers[k or 0])


class MemberModule(nn.Module):
    """Any module that maps rows to rows, m times: its parameters stacked, its forward vmapped.

    `ConfigError` at the first call where its operations cannot be batched.
    """

    def __init__(self, modules: Sequence[nn.Module], name: str) -> None:
        super().__init__()
        self.name = name
        self._like = (copy_network(modules[0]),)
        states = [dict(module.named_parameters()) for module in modules]
        self.parameters_of = nn.ParameterDict(
            {
                key.replace(".", "__"): nn.Parameter(torch.stack([s[key].detach() for s in states]))
                for key in states[0]
            }
        )

    def _state(self, passes: slice) -> dict[str, Tensor]:
        names = [key for key, _ in self._like[0].named_parameters()]
        return {key: self.parameters_of[key.replace(".", "__")][passes] for key in names}

    def forward(self, *args: Any) -> Any:
        passes = passes_now()
        like = self._like[0].train(self.training)
        if passes is None:
            state = {key: value[0] for key, value in self._state(slice(0, 1)).items()}
            return torch.func.functional_call(like, state, args)
        if not all(isinstance(arg, Tensor) for arg in args):
            raise ConfigError(_unable(like, self.name, "it takes more than tensors"))
        k = passes.stop - passes.start

        def one(state: dict[str, Tensor], *rows: Tensor) -> Any:
            return torch.func.functional_call(like, state, rows)

        try:
            out = torch.func.vmap(one, randomness="different")(
                self._state(passes), *(grouped(arg, k) for arg in args)
            )
        except (RuntimeError, ValueError) as error:
            raise ConfigError(_unable(like, self.name, str(error).splitlines()[0])) from error
        if not isinstance(out, Tensor):
            raise ConfigError(_unable(like, self.name, "it gives more than one tensor"))
        return out.flatten(0, 1)

    def plain(self, k: int | None) -> nn.Module:
        """Member `k`'s."""
        twin = copy_network(self._like[0])
        with torch.no_grad():
            for key, value in twin.named_parameters():
                value.copy_(self.parameters_of[key.replace(".", "__")][k or 0])
        return twin


def _unable(module: nn.Module, name: str, why: str) -> str:
    return (
        f"{type(module).__name__} ({name or 'the network'}) has parameters of its own and cannot "
        f"be given to the members of an ensemble: {why}; give it "
        "to_members(m), see stillfit.models.uncertain.HasMembers"
    )


def members(networks: Sequence[nn.Module]) -> nn.Module:
    """Networks of one architecture as one, with parameters of all: the core of an ensemble.

    Buffers that are no batch-norm statistics are the first network's.
    """

    def change(name: str, module: nn.Module) -> nn.Module | None:
        mine = [network.get_submodule(name) for network in networks]
        if is_plain(module):
            return layer_of(Stacked([layer for layer in mine if is_plain(layer)]), module)
        if isinstance(module, nn.BatchNorm1d | nn.LayerNorm):
            return MemberNorm([copy_network(layer) for layer in mine])  # type: ignore[arg-type]
        if type(module) is WithNoise:
            noises = [layer.log_variance.data for layer in mine if isinstance(layer, WithNoise)]
            module.__class__ = MemberNoise
            module.log_variance = nn.Parameter(torch.stack(noises))
            return None
        if isinstance(module, HasMembers):
            return _own_members(module, mine)
        if not any(True for _ in module.parameters(recurse=False)):
            return None
        if type(module).forward is nn.Module.forward:
            raise ConfigError(_unable(module, name, "it has no forward of rows"))
        if any(True for _ in module.buffers()):
            raise ConfigError(_unable(module, name, "it has buffers besides its parameters"))
        return MemberModule(mine, name)

    return converted(networks[0], change)


def _own_members(module: HasMembers, mine: Sequence[nn.Module]) -> nn.Module:
    new: Any = module.to_members(len(mine))
    if new is not module:
        for k, layer in enumerate(mine):
            new.put(k, layer)
    found: nn.Module = new
    return found
