"""A drifting table, small enough to run the whole loop in a second: y = x0 + shift + noise."""

from __future__ import annotations

import numpy as np
import torch

from stillfit.core.events import Block, Event, Examples, Labels, Notice
from stillfit.core.seeds import Seeds
from stillfit.decisions.gates import BetterOnNew, NotWorseOnOld
from stillfit.decisions.policies import OnMetric
from stillfit.decisions.probation import Probation
from stillfit.decisions.windows import FromNotices
from stillfit.loop import Lane, Plan, Redeploy
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import MLP
from stillfit.models.task import Regression
from stillfit.models.training import Schedule
from stillfit.monitors.cusum import ErrorCusum, ScoreCusum
from stillfit.monitors.late import LateMetric
from stillfit.streams.contract import InMemory
from stillfit.streams.store import Keeping
from stillfit.updaters.references import FineTune, Retrain
from stillfit.updaters.replay import Replay

TASK = Regression(features=("x0", "x1"))
FACTORIES = {"mlp": MLP}
ARCHITECTURE = Architecture("mlp", {"features": 2, "hidden": [8], "outputs": 2})
HOUR = 3600.0


def rows(
    n: int, shift: float, seed: int, first: int, time: float, condition: str
) -> tuple[Block, Labels]:
    rng = np.random.default_rng([seed, first % 1_000_003])
    x = rng.normal(size=(n, 2))
    y = x[:, 0] + shift + 0.1 * rng.normal(size=n)
    ids = np.arange(first, first + n, dtype=np.int64)
    block = Block(ids, {"x0": x[:, 0], "x1": x[:, 1]}, time, {"condition": condition})
    return block, Labels(ids, {"y": y}, time)


def examples(n: int, shift: float, seed: int, first: int, condition: str = "nominal") -> Examples:
    block, labels = rows(n, shift, seed, first, 0.0, condition)
    names = np.full(n, condition)
    return Examples(block.ids, block.inputs, labels.targets, np.zeros(n), names)


def trained(nominal: Examples) -> Model:
    """The exact answer of the nominal condition, set by hand: no training time in tests."""
    torch.manual_seed(0)
    model = Model(MLP(2, [8], 2).eval(), TASK, ARCHITECTURE)
    linear, last = model.network.layers[1], model.network.layers[3]
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.zero_()
        last.weight.zero_()
        last.bias.copy_(torch.tensor([0.0, 2 * np.log(0.1)]))
        linear.weight[0, 0], linear.weight[1, 0] = 1.0, -1.0
        last.weight[0, 0], last.weight[0, 1] = 1.0, -1.0
    return model


def season(shifts: list[tuple[str, float]], n: int = 400, blocks: int = 4) -> list[Event]:
    """Fills of `blocks` blocks; labels of a fill come in the gap after the next one."""
    events: list[Event] = []
    late: list[Labels] = []
    for fill, (condition, shift) in enumerate(shifts, start=1):
        start = 10 * HOUR * fill
        events.append(Notice("stable-beams", start, {"fill": fill, "until": start + 5 * HOUR}))
        now: list[Labels] = []
        for k in range(blocks):
            first = fill * 100_000 + k * n
            block, labels = rows(n, shift, 7, first, start + (k + 1) * HOUR, condition)
            events.append(block)
            now.append(labels)
        end = start + 5 * HOUR
        events.append(Notice("inter-fill", end, {"fill": fill, "until": start + 10 * HOUR}))
        for part in late:
            events.append(Labels(part.ids, part.targets, end + 60))
        late = now
    return events


def lane(name: str, model: Model, **knobs: object) -> Lane:
    short = Schedule(steps=60, batch=64, rate=0.02)
    rungs = {
        "frozen": {},
        "finetune": {"finetune": FineTune(schedule=short)},
        "replay": {"replay": Replay(schedule=short, capacity=500)},
        "retrain": {"retrain": Retrain(schedule=short, min_events=100)},
        "ladder": {"redeploy": Redeploy(), "finetune": FineTune(schedule=short)},
    }[name]
    settings: dict[str, object] = {
        "policy": OnMetric(cool_down=1.0),
        "gates": (BetterOnNew(), NotWorseOnOld(relative=0.5)),
        "probation": Probation(batch=5, least=5, enough=800),
        "watch": (ScoreCusum(),),
        "errors": (LateMetric(window=400), ErrorCusum()),
    }
    settings.update(knobs)
    return Lane(name=name, model=model, rungs=rungs, **settings)  # type: ignore[arg-type]


def plan(*names: str, **knobs: object) -> Plan:
    nominal = examples(800, 0.0, 3, -1000)
    model = trained(nominal)
    return Plan(
        lanes=tuple(lane(name, model, **knobs) for name in names),
        nominal=nominal,
        keeping=Keeping(budget_bytes=10**6),
        factories=FACTORIES,
        seeds=Seeds(5),
        rate=5000.0,
        window=FromNotices(build=3600.0),
    )


NOMINAL, SHIFTED = ("nominal", 0.0), ("shifted", 1.0)
STORY = [NOMINAL, SHIFTED, SHIFTED, SHIFTED, SHIFTED, NOMINAL, NOMINAL, NOMINAL, NOMINAL]


def stream(story: list[tuple[str, float]] | None = None) -> InMemory:
    return InMemory(season(STORY if story is None else story))
