"""Between stored versions, which are arrays and facts, and models that can serve."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import stillfit
from stillfit.core.arrays import Arrays
from stillfit.core.events import Examples
from stillfit.core.values import (
    Candidate,
    Cost,
    Footprint,
    Provenance,
    Served,
    UpdateClass,
    VersionId,
)
from stillfit.models.model import Architecture, Factory, Model, build, footprint, load_weights
from stillfit.models.task import Task
from stillfit.registry import Architecture as StoredArchitecture
from stillfit.registry import Manifest, Registry, VersionFacts

# Models that are kept loaded; a year of daily updates must not fill the memory.
KEPT = 32


class Shelf:
    """Models by version id: loaded from the registry, built by trusted factories only.

    The `KEPT` ones that were asked for last stay loaded.

    It also remembers what a version said of the events at hand, until `forget`: lanes that serve
    the same version answer once, and a climb judges its incumbent once.
    """

    def __init__(self, registry: Registry, factories: Mapping[str, Factory], task: Task) -> None:
        self._registry = registry
        self._factories = factories
        self._task = task
        self._models: dict[VersionId, Model] = {}
        self._said: dict[tuple[VersionId, int], tuple[Arrays, Served]] = {}
        self._fitted: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    def get(self, version: VersionId) -> Model:
        """The model of a stored version, every hash of it checked when it is first loaded."""
        model = self._models.pop(version, None)
        if model is None:
            stored = self._registry.load_version(version)
            told = stored.manifest.facts.architecture
            architecture = Architecture(told.factory, told.arguments)
            network = build(architecture, self._factories)
            load_weights(network, stored.weights)
            model = Model(network.eval(), self._task, architecture)
        self._models[version] = model  # the newest last
        while len(self._models) > KEPT:
            del self._models[next(iter(self._models))]
        return model

    def serve(self, version: VersionId, inputs: Arrays) -> Served:
        """What a version says of raw inputs, signed with its id."""
        key = (version, id(inputs))
        if key not in self._said:
            # The inputs are kept with the answer, so that their id is not given out again.
            self._said[key] = inputs, self.get(version).serve(version, inputs)
        return self._said[key][1]

    def errors(self, version: VersionId, examples: Examples) -> dict[str, NDArray[np.float64]]:
        """The task's errors of a stored version on labelled events."""
        served = self.serve(version, examples.inputs)
        return self.get(version).task.errors(served.predictive, served.outputs, examples.targets)

    def fitted(self, key: tuple[Any, ...], examples: Any, fit: Callable[[], Any]) -> Any:
        """A monitor's reference, worked out once for lanes that begin from the same one."""
        whole = (*key, id(examples))
        if whole not in self._fitted:
            self._fitted[whole] = examples, fit()
        return self._fitted[whole][1]

    def forget(self) -> None:
        """Let go of answers about events that are over."""
        self._said.clear()
        self._fitted.clear()

    def manifest(self, version: VersionId) -> Manifest:
        """What a stored version is and came from, without its arrays."""
        return self._registry.manifest(version)

    def reach(self, first: VersionId | UpdateClass, then: VersionId) -> UpdateClass:
        """What it takes to go from one version (or one of a class) to a stored one.

        A bitstream if either is a circuit of its own, for then the other's is loaded anew.
        """
        own = first if first in ("weights", "bitstream") else self._class(VersionId(first))
        return "bitstream" if "bitstream" in (own, self._class(then)) else "weights"

    def _class(self, version: VersionId) -> UpdateClass:
        return self.manifest(version).facts.update_class

    def measure(self, lane: str, what: str, figures: Mapping[str, float]) -> None:
        """Keep figures of this machine beside the journal, outside of every hash."""
        self._registry.measure(lane, what, figures)

    def put_first(
        self, model: Model, provenance: Provenance, size: Footprint | None = None
    ) -> VersionId:
        """Store a version that nothing in this registry came before."""
        candidate = Candidate(
            model=model, learner={}, cost=Cost(), update_class="weights", provenance=provenance
        )
        return self.put(candidate, None, {}, size)

    def put(
        self,
        candidate: Candidate[Model],
        parent: VersionId | None,
        evidence: Mapping[str, Any],
        size: Footprint | None = None,
    ) -> VersionId:
        """Store a candidate with its learner's state and the verdicts that let it through.

        `size`: its footprint where a chip has measured it, else parameters are counted.
        """
        model = candidate.model
        version = self._registry.add_version(
            VersionFacts(
                architecture=StoredArchitecture(
                    model.architecture.factory, dict(model.architecture.arguments)
                ),
                update_class=candidate.update_class,
                provenance=candidate.provenance,
                footprint=size or footprint(model.network),
                code=stillfit.__version__,
                parent=parent,
            ),
            weights=model.weights(),
            learner=candidate.learner,
            evidence=evidence,
        )
        self._models.setdefault(version, model)
        return version
