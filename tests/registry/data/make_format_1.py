"""How `format-1/` was made, with release 0.1.0. It is never made anew: old files load for ever.

python tests/registry/data/make_format_1.py tests/registry/data/format-1
"""

import sys

import numpy as np

from stillfit.core.values import Footprint, Provenance
from stillfit.registry import Architecture, Command, Registry, VersionFacts

path = sys.argv[1]
with Registry.create(path) as registry:
    parent = None
    for seed, name in ((1, "retrain"), (2, "replay")):
        facts = VersionFacts(
            architecture=Architecture("stillfit.l1t.networks:e2e", {"hidden": [10, 10]}),
            update_class="weights",
            provenance=Provenance(
                updater=name,
                seed=seed,
                data=("ab" * 32,),
                span=(0.0, 3600.5),
                events={"nominal": 4000, "dead-sector": 200},
            ),
            footprint=Footprint(parameters=6, weight_bytes=24, macs_per_event=6),
            code="0.1.0",
            parent=parent,
            notes={"bit-exact": True},
        )
        version = registry.add_version(
            facts,
            weights={"layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3) * seed},
            learner={"events": np.arange(4.0), "offsets": np.array([0, 2, 4])},
            evidence={"verdicts": [{"gate": "better-on-new", "accepted": True, "gain": 0.25}]},
        )
        writer = registry.writer("replay", registry.head.count)
        if parent is None:
            writer.deploy(version, 0.0, "first version")
        else:
            writer.append("verdict", 7000.0, version=version, payload={"because": "better"})
            writer.switch(version, 7200.0, "convinced the gates; the window is open")
        parent = version
    registry.measure("replay", version, {"seconds": 2.5})
    registry.save_checkpoint(
        "season",
        42,
        {"position": writer.position, "rate": 0.5},
        {"large": np.arange(10_000.0), "small": np.array([1, 2, 3], np.int16)},
    )
Registry.order(path, Command(lane="replay", kind="hold", because="shift change", actor="anna"))
