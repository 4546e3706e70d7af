"""The flagship study: rival ways of keeping the vertex network fit through one season."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from stillfit.core.clock import DAY
from stillfit.core.errors import ConfigError
from stillfit.core.events import Examples
from stillfit.core.seeds import Seeds
from stillfit.core.tables import did_you_mean
from stillfit.decisions.chip import BitExact, Fits, FootprintStable, Latency
from stillfit.decisions.gates import BetterOnNew, Calibrated, Gate, NotWorseOnOld, WithinBudget
from stillfit.decisions.policies import OnMetric
from stillfit.decisions.probation import Probation
from stillfit.decisions.windows import FromNotices
from stillfit.l1t.chip import VertexChip
from stillfit.l1t.factories import FACTORIES
from stillfit.l1t.season import Season
from stillfit.loop import Lane, Plan, Redeploy
from stillfit.loop.plan import Rung
from stillfit.models.growth import FACTORIES as GROWN
from stillfit.models.model import Model
from stillfit.models.training import Schedule
from stillfit.monitors.cusum import ErrorCusum, ScoreCusum
from stillfit.monitors.drift import InputDrift
from stillfit.monitors.ks import ScoreKS
from stillfit.monitors.late import LateMetric
from stillfit.streams.store import Keeping
from stillfit.updaters.dynamic import Compress, Grow, PackNet
from stillfit.updaters.embedded import EmbeddedBudget, EmbeddedLMS, EmbeddedSGD, Format
from stillfit.updaters.labels import PseudoLabels
from stillfit.updaters.online import OnlineFineTune, OnlineReplay
from stillfit.updaters.recalibrate import Recalibrate
from stillfit.updaters.references import FineTune, Retrain, RetrainWindow
from stillfit.updaters.regularisation import EWC, MAS, LwF, OnlineEWC, SynapticIntelligence
from stillfit.updaters.replay import DarkReplay, GDumb, Replay

# Columns whose distribution tells of the detector; pT and z0 follow the physics and the beams.
WATCHED = ("chi2rz", "chi2rphi", "nstub", "quality")


# What learns on the chip beside the circuit that serves: 18 bits are a multiplier block's second
# operand, and everything that changes fits one block memory of 36 kbit. 12 fraction bits; nothing
# is stored, each event is learned once. Rates: benchmarks/study_on_chip.py, on events of its own.
LEARNS = Format(width=18, fraction=12)
ON_CHIP = EmbeddedBudget(ram_bytes=4608, macs_per_example=2048, fraction_bits=12, stored_examples=0)
RECALL = 8192  # ids of events that were learned from, kept by the host


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much the gradient-based lanes may train; the retrain is a fair rival at its default.

    `retrain`: from nothing, on everything kept. `tune`: from the serving weights.
    """

    retrain: Schedule = field(default_factory=lambda: Schedule(steps=500, batch=200, rate=0.005))
    tune: Schedule = field(default_factory=lambda: Schedule(steps=120, batch=300, rate=0.002))
    store_bytes: int = 128 * 2**20


def ways(effort: Effort) -> dict[str, tuple[str, dict[str, Rung]]]:
    """Title and rungs of every lane that can be named.

    Recalibration and tuning keep the circuit (reloadable weights); a retrained network is taken
    for a new constant-weight circuit, so it is built for hours and loaded between fills.
    """
    tune = effort.tune
    recalibrate = Recalibrate()
    replay = Replay(schedule=tune, capacity=2000)
    balanced = Replay(schedule=tune, capacity=2000, keep="balanced")
    retrain = Retrain(schedule=effort.retrain, update_class="bitstream")
    window = RetrainWindow(schedule=effort.retrain, update_class="bitstream")
    circuit = FineTune(schedule=tune, update_class="bitstream")
    loaded = Retrain(schedule=effort.retrain, update_class="weights")
    on_chip = EmbeddedSGD(numbers=LEARNS, rate=2.0**-12, device=ON_CHIP, recall=RECALL)
    last_layer = EmbeddedLMS(numbers=LEARNS, rate=2.0**-9, device=ON_CHIP, recall=RECALL)
    return {
        "fasthisto": ("FastHisto", {}),
        "frozen": ("Frozen network", {}),
        "frozen-fixed": ("Frozen circuit", {}),
        "recalibrate": ("Recalibrate", {"recalibrate": recalibrate}),
        "finetune": ("Fine-tune", {"finetune": FineTune(schedule=tune)}),
        "replay": ("Replay", {"replay": replay}),
        "replay-balanced": ("Replay, balanced", {"replay": balanced}),
        "dark": ("Dark replay", {"dark": DarkReplay(schedule=tune, capacity=2000)}),
        "gdumb": ("GDumb", {"gdumb": GDumb(schedule=effort.retrain, capacity=2000)}),
        "ewc": ("EWC", {"ewc": EWC(schedule=tune)}),
        "online-ewc": ("Online EWC", {"online-ewc": OnlineEWC(schedule=tune)}),
        "si": ("Synaptic intelligence", {"si": SynapticIntelligence(schedule=tune)}),
        "mas": ("MAS", {"mas": MAS(schedule=tune)}),
        "lwf": ("LwF", {"lwf": LwF(schedule=tune)}),
        "packnet": ("PackNet masks", {"packnet": PackNet(schedule=tune)}),
        "grow": ("Growing layers", {"grow": Grow(schedule=tune)}),
        "compress": ("Pruning and bit widths", {"compress": Compress(schedule=tune)}),
        "online": ("Online", {"online": OnlineFineTune()}),
        "online-replay": ("Online replay", {"online-replay": OnlineReplay()}),
        "pseudo-labels": ("Pseudo-labels", {"pseudo-labels": PseudoLabels(schedule=tune)}),
        "retrain": ("Retrain", {"retrain": retrain}),
        "retrain-window": ("Retrain on a window", {"retrain": window}),
        "retrain-fixed": ("Retrain, constant weights", {"retrain": retrain}),
        "tune-fixed": ("Fine-tune, constant weights", {"finetune": circuit}),
        "retrain-reloadable": ("Retrain, reloadable weights", {"retrain": loaded}),
        "tune-reloadable": ("Fine-tune, reloadable weights", {"finetune": FineTune(schedule=tune)}),
        "on-chip": ("Learn on the chip", {"on-chip": on_chip}),
        "on-chip-last": ("Learn on the chip, last layer", {"on-chip": last_layer}),
        "ladder": (
            "Ladder",
            {
                "redeploy": Redeploy(),
                "recalibrate": recalibrate,
                "replay": balanced,
                "retrain": retrain,
            },
        ),
    }


# Lanes whose network is in fixed point and is measured as a circuit; the others are float. Their
# first model goes by the name of FIXED.
CHIPS = {
    "frozen-fixed": VertexChip(design="reloadable"),
    "retrain-fixed": VertexChip(design="constant"),
    "tune-fixed": VertexChip(design="constant"),
    "retrain-reloadable": VertexChip(design="reloadable"),
    "tune-reloadable": VertexChip(design="reloadable"),
    "on-chip": VertexChip(design="reloadable"),
    "on-chip-last": VertexChip(design="reloadable"),
}
FIXED = "fixed"
LEARN_ON_CHIP = ("on-chip", "on-chip-last")
# What is in place today, the network left alone, and the two answers: retrain, or learn on by the
# strategy that did best on other seasons (docs/learning/retrain-or-learn-on.md).
DEMO_LANES = ("fasthisto", "frozen", "retrain", "dark")


def gates(*, states: bool = True) -> tuple[Gate, ...]:
    """What a candidate must convince in the season, in units of the task's error (0 to 1).

    Better on the new condition by at least .003; on old ones not worse by .01, unless a stored
    version brings them back in one gap between fills, which is when anything is updated here;
    68 % intervals that hold 58 to 78 %, or are surely nearer to that than the incumbent's.
    `states`: whether updates can change what is stated of the position at all; learning on the chip
    cannot, so there intervals that are the incumbent's own pass too.
    """
    return (
        BetterOnNew(margin=0.003),
        NotWorseOnOld(margin=0.01, relative=0.0, way_back="bitstream"),
        Calibrated(coverage=0.6827, tolerance=0.1, unless_same=not states),
        WithinBudget(),
    )


def chip_gates(chip: VertexChip) -> tuple[Gate, ...]:
    """What the circuit of a candidate must keep, cheapest first.

    Half of the device; nothing more than 2 % larger than the incumbent, whose place and timing are
    known; the answer within 250 ns and an event every 450 ns (162 clocks of 360 MHz); 10 000
    tracks bit for bit.
    """
    return (
        Fits(device=chip.chip.device, share=0.5),
        FootprintStable(tolerance=0.02),
        Latency(ns=250.0, interval=450.0),
        BitExact(vectors=chip.vectors),
    )


def season_plan(
    season: Season,
    names: tuple[str, ...],
    models: Mapping[str, Model],
    nominal: Examples,
    *,
    seed: int,
    effort: Effort | None = None,
    synthesise: bool = False,
) -> Plan:
    """The run of a season: one lane for each of `names`, side by side on the same events.

    `models`: the first model of the lanes, by name; `"network"` for those not named, `FIXED` for
    lanes with a chip. `nominal`:
    labelled nominal events that none of the models was trained on. `synthesise`: let Yosys count
    every version of a lane with a chip that begins to serve, a minute or two each.
    """
    effort = effort or Effort()
    known = ways(effort)
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no lane {name!r}{did_you_mean(name, known)}")
    scenario = season.scenario
    days = season.fills[-1].next_start / DAY
    lanes = []
    for name in names:
        title, rungs = known[name]
        chip = CHIPS.get(name)
        if chip is not None and synthesise:
            chip = replace(chip, promotion=True)
        watch = (
            ScoreCusum(),
            ScoreKS(window=min(500, scenario.events)),
            InputDrift(columns=WATCHED, every=5, window=scenario.events),
        )
        lanes.append(
            Lane(
                name=name,
                title=title,
                model=models[FIXED] if chip else models.get(name, models["network"]),
                rungs=rungs,
                policy=OnMetric(cool_down=3600.0),
                gates=(
                    *gates(states=name not in LEARN_ON_CHIP),
                    *(chip_gates(chip) if chip else ()),
                ),
                chip=chip,
                probation=Probation(margin=0.003, enough=2 * scenario.events),
                watch=watch if name != "fasthisto" else (),
                errors=(LateMetric(window=scenario.events, margin=0.005), ErrorCusum()),
                fresh=2 * scenario.events,
                judged=scenario.events,
            )
        )
    return Plan(
        lanes=tuple(lanes),
        nominal=nominal,
        keeping=Keeping(budget_bytes=effort.store_bytes, held_out=0.3, seed=seed),
        factories={**FACTORIES, **GROWN},
        seeds=Seeds(seed),
        rate=scenario.fills * scenario.events / days,
        window=FromNotices(),
        checkpoint=4 * (season.blocks + 3),  # every fourth fill
        run="season",
    )
