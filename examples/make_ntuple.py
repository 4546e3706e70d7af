"""Makes `ntuple.root`, the L1TrackNtuple of `ntuple.toml`: simulated fills of pile-up 60.

In fills 3 and 4 of five the barrel sits 2 mm off. Needs the extra [hep]; takes a few seconds.

    python examples/make_ntuple.py [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

from stillfit.l1t.library import load
from stillfit.l1t.ntuple_writing import write_ntuple
from stillfit.l1t.scenario import Change, Scenario
from stillfit.l1t.season import Season

SCENARIO = Scenario(
    title="Five fills of pile-up 60, the barrel 2 mm off in two of them",
    fills=5,
    events=1200,
    block=200,
    nominal={"pileup": 60.0},
    changes=(Change(name="moved", first=3, last=4, knobs={"barrel_z_shift": 0.2}),),
    seed=4,
)


def main(path: Path) -> None:
    path.unlink(missing_ok=True)
    write_ntuple(path, Season(SCENARIO, load()))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "ntuple.root")
