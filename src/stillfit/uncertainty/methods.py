"""The catalogue: every method by name, and the factories under which versions are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import nn

from stillfit.models.model import Factory
from stillfit.uncertainty.auxiliary import Auxiliary
from stillfit.uncertainty.bayesian import Bayesian
from stillfit.uncertainty.dropout import MCDropout
from stillfit.uncertainty.ensembles import BatchEnsemble, DeepEnsemble, Masksembles
from stillfit.uncertainty.heads import (
    BetaGaussianHead,
    CrpsHead,
    EvidentialHead,
    GaussianHead,
    QuantileHead,
)
from stillfit.uncertainty.laplace import LastLayerLaplace
from stillfit.uncertainty.propagation import MomentPropagation

Kind: TypeAlias = Literal["head", "members", "post-hoc", "calibrator"]


@dataclass(frozen=True)
class Method:
    """One way to make a network state its uncertainty.

    `convert(network)` gives the network of the method with its default knobs, untrained: call
    `models.uncertain.fresh` or train it. `kind`: where the uncertainty comes from. `decomposes`:
    it tells noise from ignorance. `source`: the paper.
    """

    name: str
    convert: Callable[[nn.Module], nn.Module]
    kind: Kind
    decomposes: bool
    source: str


def _last_only(network: nn.Module, **knobs: Any) -> nn.Module:
    return MCDropout(network, **{"last_only": True, **knobs})


def _diagonal(network: nn.Module, **knobs: Any) -> nn.Module:
    return LastLayerLaplace(network, **{"structure": "diagonal", **knobs})


# What a stored version or a run file names; the network inside it is built first.
FACTORIES: dict[str, Factory] = {
    "deep-ensemble": DeepEnsemble,
    "batch-ensemble": BatchEnsemble,
    "masksembles": Masksembles,
    "mc-dropout": MCDropout,
    "mc-dropout-last": _last_only,
    "bayesian": Bayesian,
    "moments": MomentPropagation,
    "gaussian": GaussianHead,
    "beta-gaussian": BetaGaussianHead,
    "crps": CrpsHead,
    "quantiles": QuantileHead,
    "evidential": EvidentialHead,
    "auxiliary": Auxiliary,
    "laplace": LastLayerLaplace,
    "laplace-diagonal": _diagonal,
}


def _of(name: str, kind: Kind, decomposes: bool, source: str) -> Method:
    """A method that is converted by its factory with the default knobs."""
    return Method(name, lambda network: FACTORIES[name](network=network), kind, decomposes, source)


_MEMBERS: tuple[Method, ...] = (
    _of("deep-ensemble", "members", True, "Lakshminarayanan et al. 2017, arXiv:1612.01474"),
    _of("batch-ensemble", "members", True, "Wen et al. 2020, arXiv:2002.06715"),
    _of("masksembles", "members", True, "Durasov et al. 2021, arXiv:2012.08334"),
    _of("mc-dropout", "members", True, "Gal and Ghahramani 2016, arXiv:1506.02142"),
    _of("mc-dropout-last", "members", True, "Gal and Ghahramani 2016, arXiv:1506.02142"),
    _of("bayesian", "members", True, "Blundell et al. 2015, arXiv:1505.05424"),
    _of("moments", "members", True, "Hernandez-Lobato and Adams 2015, arXiv:1502.05336"),
)

_HEADS: tuple[Method, ...] = (
    _of("gaussian", "head", False, "Nix and Weigend 1994, doi:10.1109/ICNN.1994.374138"),
    _of("beta-gaussian", "head", False, "Seitzer et al. 2022, arXiv:2203.09168"),
    _of("crps", "head", False, "Gneiting and Raftery 2007, doi:10.1198/016214506000001437"),
    _of("quantiles", "head", False, "Koenker and Bassett 1978, doi:10.2307/1913643"),
    _of("evidential", "head", True, "Amini et al. 2020, arXiv:1910.02600"),
)

_POST_HOC: tuple[Method, ...] = (
    _of("auxiliary", "post-hoc", False, "Yoo and Kweon 2019, arXiv:1905.03677"),
    _of("laplace", "post-hoc", True, "Daxberger et al. 2021, arXiv:2106.14806"),
    _of("laplace-diagonal", "post-hoc", True, "Daxberger et al. 2021, arXiv:2106.14806"),
)

METHODS: dict[str, Method] = {method.name: method for method in (*_HEADS, *_POST_HOC, *_MEMBERS)}
