"""A stored version as a network again: one piece for all commands of `stillfit firmware`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stillfit.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from stillfit.core.arrays import Array
    from stillfit.core.values import VersionId
    from stillfit.models.model import Architecture, Factory, Model
    from stillfit.models.task import Task

FLOAT = ("l1t.e2e", "l1t.adaptive", "l1t.fasthisto")  # vertex finders that are not in fixed point


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredNetwork:
    """A version's network in evaluation mode, and its learner's state.

    `task`: None where neither the kind of network nor a run file says what it is for; a circuit
    does not ask.
    """

    version: VersionId
    network: nn.Module
    architecture: Architecture
    learner: Mapping[str, Array]
    task: Task | None

    @property
    def is_chain(self) -> bool:
        """Whether it is a vertex network that has a chain in whole numbers."""
        return self.architecture.factory == "l1t.fixed-e2e"

    @property
    def model(self) -> Model:
        """The network with its task; `ConfigError` where that is not known."""
        from stillfit.models.model import Model

        if self.task is None:
            raise ConfigError(
                f"version {self.version[:8]} is a {self.architecture.factory!r}, whose task is not "
                "stored with it; give the run file of its registry (--run)"
            )
        return Model(self.network, self.task, self.architecture)


def stored_network(store: Path, version: str, run: Path | None = None) -> StoredNetwork:
    """A version by the first digits of its id, every hash of it checked.

    Built by the shipped factory of its name; with the run file `run` by the factories that this
    names, with its task. `ConfigError` for a version of another run file.
    """
    from stillfit.apps import inspect
    from stillfit.models.model import Architecture, build, load_weights

    with inspect.opened(store) as registry:
        found = inspect.find_version(registry, version)
        stored = registry.load_version(found)
    told = stored.manifest.facts.architecture
    architecture = Architecture(told.factory, told.arguments)
    factories, task = _shipped(told.factory) if run is None else _named_by(run)
    if told.factory not in factories:
        raise ConfigError(
            f"the version was made by {told.factory!r} and {run.name if run else 'stillfit'} names "
            f"{', '.join(factories)}; give the run file of this registry"
        )
    network = build(architecture, factories)
    load_weights(network, stored.weights)
    return StoredNetwork(
        version=found,
        network=network.eval(),
        architecture=architecture,
        learner=stored.learner,
        task=task,
    )


def require_fixed(stored: StoredNetwork) -> None:
    """`ConfigError` with the way out for a float vertex network, which has no circuit."""
    if stored.architecture.factory in FLOAT:
        raise ConfigError(
            f"version {stored.version[:8]} is {stored.architecture.factory!r}, a float network, "
            "which has no circuit; convert the model first: l1t.fixed_recipe.Compression().compress"
            "(model, examples, rng), or let a lane with a chip do it and name one of its versions "
            "(stillfit demo --scenario footprint --network e2e --lanes frozen,retrain-fixed)"
        )


def _shipped(name: str) -> tuple[Mapping[str, Factory], Task | None]:
    from stillfit.apps.runfile import factory_of
    from stillfit.l1t.factories import FACTORIES
    from stillfit.l1t.vertex import VertexTask

    task = VertexTask() if name in FACTORIES else None
    return {name: factory_of(name, Path.cwd())}, task


def _named_by(run: Path) -> tuple[Mapping[str, Factory], Task]:
    from stillfit.apps.runfile import constant_noise, factory_of, method_factory, read
    from stillfit.models.growth import FACTORIES as GROWN

    settings = read(run)
    plain = factory_of(settings.head.network, run.resolve().parent)
    noisy = settings.head.noise == "constant"
    factories = {**GROWN, settings.head.network: constant_noise(plain) if noisy else plain}
    if settings.method:
        factories[settings.method] = method_factory(settings.method)
    return factories, settings.task
