"""The published study of ten dead regions: its experiences, its track rows, its classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from stillfit.core.arrays import Ragged
from stillfit.core.errors import DataError
from stillfit.core.events import Examples
from stillfit.core.seeds import Seeds
from stillfit.l1t.conditions import DEAD_REGIONS, nominal
from stillfit.l1t.finders import FastHisto
from stillfit.l1t.library import Library
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.vertex import VertexTask
from stillfit.models.model import Architecture, Factory, Model
from stillfit.models.networks import MLP
from stillfit.studies.experiences import Experience

FEATURES = ("eta", "phi", "pt", "z0", "dz")
PT_MAX = 128.0  # GeV: fits that failed may say thousands, which the trigger's words cannot hold
TRACKS = 4096  # ids of an event's tracks: more than any crossing has


def dead_regions(
    library: Library,
    *,
    seed: int,
    events: int = 1000,
    test_events: int = 1000,
    drops: Literal["tracks", "stubs"] = "tracks",
    regions: Sequence[str] = tuple(DEAD_REGIONS),
) -> list[Experience]:
    """Simulated events of each region in turn, as the authors' sequence of ten experiences.

    `drops="tracks"` is the authors' mask on finished tracks; `"stubs"` loses the stubs, and lets
    tracks suffer as the detector makes them. Training and test events come from different
    interactions of the library (the authors split the tracks of the same events at random, which
    lets a network know its test events' vertices). Whole events, for vertex networks;
    `as_tracks` makes the rows of the classifier.
    Cost: 0.3 ms per event; memory 10 kB per event.
    Source: EPJ Web Conf. 295, 09037 (2024); regions in `l1t.conditions`.
    """
    found = []
    for number, name in enumerate(regions):
        region = DEAD_REGIONS.get(name)
        if name not in DEAD_REGIONS:
            raise DataError(
                f"there is no dead region {name!r}; there are {', '.join(DEAD_REGIONS)}"
            )
        dead = () if region is None else (replace(region, drops=drops),)
        conditions = replace(nominal(), dead_regions=dead)
        sides = []
        for split, many, base in (("train", events, 0), ("test", test_events, events)):
            made = vertex_examples(
                many,
                conditions,
                library=library,
                seed=Seeds(seed).integer("dead region", name, split),
                split=split,
                condition=f"region {name}",
            )
            ids = made.ids + number * (events + test_events) + base
            sides.append(replace(made, ids=ids, times=np.full(many, float(number))))
        found.append(Experience(f"region {name}", sides[0], sides[1]))
    return found


def track_rows(examples: Examples) -> Examples:
    """One row per track of simulated events: does it come from the primary vertex?

    Features, each a column: eta, phi (rad), pt (at most 128 GeV), z0 (cm), and dz = z0 - the z of
    the event's FastHisto vertex at its bin centre, without track cuts (cm), as the authors have
    it. That vertex is found with what tracks are left, so a dead region moves it too. Target
    `"y"`: 1 from the primary vertex, else 0. A row's id is its event's id * 4096 + the track's
    number, so that `ids // 4096` tells which tracks belong together (the errors of one event's
    tracks do).
    """
    finder = FastHisto(position="centre", cuts=False)
    model = Model(finder, VertexTask(), Architecture("l1t.fasthisto"))
    vertex = np.asarray(model.predict(examples.inputs)[0].mean)  # type: ignore[union-attr]
    columns: dict[str, Ragged] = {}
    for name in FEATURES[:-1]:
        column = examples.inputs.get(name)
        if not isinstance(column, Ragged):
            raise DataError(f"track rows need the ragged column {name!r} of simulated events")
        columns[name] = column
    examples.require("is_pv")
    flags = examples.targets["is_pv"]
    assert isinstance(flags, Ragged)
    counts = flags.counts
    if len(counts) and counts.max() >= TRACKS:
        raise DataError(f"an event has {counts.max()} tracks; ids are made for less than {TRACKS}")
    event = flags.events
    number = np.arange(len(event)) - flags.offsets[:-1][event]
    rows = {name: column.values.astype(np.float32) for name, column in columns.items()}
    rows["pt"] = np.minimum(rows["pt"], np.float32(PT_MAX))
    rows["dz"] = (rows["z0"] - vertex[event]).astype(np.float32)
    return Examples(
        examples.ids[event] * TRACKS + number,
        rows,
        {"y": flags.values.astype(np.int64)},
        examples.times[event],
        examples.conditions[event],
    )


def as_tracks(experiences: Sequence[Experience]) -> list[Experience]:
    """The same experiences as rows of tracks."""
    return [
        Experience(one.name, track_rows(one.train), track_rows(one.test)) for one in experiences
    ]


class TrackClassifier(MLP):
    """The authors' dense 5-25-30-1 track-to-vertex classifier, inputs standardised inside.

    Its one output is the logit of "from the primary vertex"; it returns (n, 2) logits, 0 and that
    one, so that the cross-entropy of `Classification` is the authors' binary cross-entropy. 961
    parameters, 905 multiply-accumulates per track.
    """

    def __init__(self, features: int = 5, hidden: Sequence[int] = (25, 30)) -> None:
        super().__init__(features, hidden, outputs=1)

    def forward(self, x: Tensor) -> Tensor:
        logit = super().forward(x)
        return torch.cat([torch.zeros_like(logit), logit], 1)


FACTORIES: Mapping[str, Factory] = {"studies.tracks": TrackClassifier}
"""The study's network by the name under which stored versions know it."""
