"""A season that looks like a real one, made of a seed: input for report, summary and commands."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest

from stillfit.apps.summary import (
    Calibration,
    Cost,
    Decision,
    Fill,
    Forgetting,
    Held,
    Lane,
    Lead,
    Metric,
    RegistrySize,
    Score,
    Stored,
    Summary,
    Uncertainty,
)

HOUR = 3600.0
METRICS = (
    Metric(name="efficiency", title="Efficiency |dz| < 0.15 cm"),
    Metric(name="width_cm", title="Core width of the z0 residual", unit="cm", better="lower"),
    Metric(name="auc", title="Association AUC"),
    Metric(name="balanced_accuracy", title="Association balanced accuracy"),
)
STRETCHES = (
    ("nominal", 3),
    ("barrel shifted 2 mm", 4),
    ("inner barrel resolution", 3),
    ("layer 1 tripped", 3),
    ("nominal", 2),
    ("quality word", 3),
    ("barrel shifted 2 mm", 3),
    ("ageing", 3),
)
# Efficiency of the network left alone, and of one that has adapted: the trends of the prototypes.
ALONE = {
    "nominal": (0.967, 0.968),
    "barrel shifted 2 mm": (0.066, 0.955),
    "inner barrel resolution": (0.39, 0.40),
    "layer 1 tripped": (0.80, 0.832),
    "quality word": (0.937, 0.964),
    "ageing": (0.95, 0.951),
}
TITLES = {
    "fasthisto": "FastHisto with cuts",
    "frozen": "Network left alone",
    "recalibrate": "Recalibration only",
    "retrain": "Retrained from scratch",
    "replay": "Fine-tuned with replay",
    "ladder": "Ladder: cheapest rung first",
}


def season_fills() -> tuple[Fill, ...]:
    fills, start = [], 0.0
    for number, condition in enumerate((n for n, k in STRETCHES for _ in range(k)), 1):
        length = (4 + number % 5) * HOUR
        pileup = 200.0 - number % 3
        fills.append(
            Fill(fill=number, condition=condition, start=start, end=start + length, pileup=pileup)
        )
        start += length + (3 + number % 4) * HOUR
    return tuple(fills)


def made_id(*name: object) -> str:
    return hashlib.sha256("/".join(map(str, name)).encode()).hexdigest()


def season_summary(seed: int = 1) -> Summary:
    """24 fills, 6 lanes, 2000 events a fill."""
    rng = np.random.default_rng(seed)
    fills = season_fills()
    lanes, decisions = {}, []
    for name, title in TITLES.items():
        rows, seen, version = [], set(), made_id("first")
        for fill in fills:
            alone, adapted = ALONE[fill.condition]
            late = fill.fill > 1 and fills[fill.fill - 2].condition == fill.condition
            known = fill.condition in seen and name == "ladder"
            share = {"retrain": 0.9, "replay": 0.7, "recalibrate": 0.95, "ladder": 1.0}.get(name, 0)
            learns = fill.condition != "quality word" or name != "recalibrate"
            truth = alone + (adapted - alone) * share * (late or known) * learns
            if name == "fasthisto":
                truth = 0.937 if alone > 0.9 else 0.78 if alone > 0.5 else 0.35
            n = 2000
            value = rng.binomial(n, truth) / n
            width = 0.037 + 0.9 * (0.97 - truth) ** 2 + rng.normal(0, 0.001)
            balanced = 0.966 - 0.25 * (fill.condition == "quality word" and not late)
            stated = None if name == "fasthisto" else width * (1.0 if late else 0.7)
            rows.append(
                Score(
                    fill=fill.fill,
                    condition=fill.condition,
                    n=n,
                    version=None if name == "fasthisto" else version,
                    values={
                        "efficiency": value,
                        "width_cm": width,
                        "auc": min(1.0, 0.988 - 0.1 * (0.97 - truth) + rng.normal(0, 0.001)),
                        "balanced_accuracy": balanced + rng.normal(0, 0.002),
                        "sigma_cm": stated,
                        "sigma_cm_low": None if stated is None else 0.7 * stated,
                        "sigma_cm_high": None if stated is None else 1.9 * stated,
                    },
                    errors={
                        "efficiency": float(np.sqrt(truth * (1 - truth) / n)),
                        "width_cm": width / np.sqrt(2 * n),
                        "balanced_accuracy": 0.002,
                    },
                )
            )
            if share and not late and fill.fill > 1:
                step = made_id(name, fill.fill)
                version = step if fill.condition != "ageing" else version
                decisions += change(name, fill, step, known)
            seen.add(fill.condition)
        lanes[name] = lane(name, title, tuple(rows), rng)
    decisions += trouble(fills)
    return Summary(
        title="A season of 24 fills",
        kind="l1t",
        stillfit="0.1.0",
        seed=seed,
        metrics=METRICS,
        lanes=lanes,
        decisions=tuple(sorted(decisions, key=lambda d: d.time)),
        fills=fills,
        registry=RegistrySize(versions=31, bytes=1_834_022, journal=412),
        uncertainty=Uncertainty(
            name="sigma_cm",
            title="Mean stated uncertainty of z0",
            unit="cm",
            against="width_cm",
            low="sigma_cm_low",
            high="sigma_cm_high",
        ),
        baseline="frozen",
        run={"scenario": "season", "events_per_fill": 2000, "label": {"delay": 1, "fraction": 0.1}},
    )


def change(lane: str, fill: Fill, version: str, known: bool) -> list[Decision]:
    """What the journal says of one change: asked in the fill, switched in the gap after it."""

    def step(hours: float, what: str, because: str, with_version: bool = True) -> Decision:
        return Decision(
            time=fill.end + hours * HOUR,
            fill=fill.fill,
            lane=lane,
            what=what,
            version=version if with_version else None,
            because=because,
        )

    asked = step(
        -1.5,
        "request",
        f"|z0 pull| of 412 labelled events is 3.1 times its reference in {fill.condition!r}",
        with_version=False,
    )
    if fill.condition == "ageing":
        reason = "better on new: -0.0008 ± 0.0031 against a margin of 0.002: not convincing"
        return [asked, step(0.3, "refused", reason)]
    what, why = ("redeploy", "it served this condition before") if known else ("switch", "window")
    return [
        asked,
        step(0.2, "verdict", "better on new by 0.214 ± 0.012 (margin 0.002, 95 %)"),
        step(0.3, "staged", "weights class: ready at once"),
        step(0.5, what, f"all gates accepted; {why} of fill {fill.fill} is open"),
        step(0.6, "kept", "no worse than the version before on 2000 events of the next fill"),
    ]


def trouble(fills: tuple[Fill, ...]) -> list[Decision]:
    """A version that passed its gates and was bad: rollback, hold, a person resumes."""
    at = fills[16]
    rows = (
        (1.0, "rollback", "probation: efficiency 0.911 against 0.958 (1204 events each)"),
        (1.0, "hold", "automatic changes stop after a rollback"),
        (3.5, "resume", "M. Weiss: bad labels of fill 16 removed from the store"),
    )
    return [
        Decision(
            time=at.start + hours * HOUR,
            fill=at.fill,
            lane="replay",
            what=what,
            version=made_id("replay", 12),
            because=because,
        )
        for hours, what, because in rows
    ]


def lane(name: str, title: str, rows: tuple[Score, ...], rng: np.random.Generator) -> Lane:
    if name in ("fasthisto", "frozen"):
        states = name == "frozen"
        return Lane(
            title=title,
            fills=rows,
            calibration=bins(rng, 1.6) if states else (),
            leads=noticed() if states else (),
        )
    names = list(dict.fromkeys(condition for condition, _ in STRETCHES))
    served = tuple(dict.fromkeys(row.version for row in rows if row.version))
    matrix = 0.95 - 0.5 * rng.random((len(served), len(names)))
    return Lane(
        title=title,
        fills=rows,
        calibration=bins(rng, 1.1),
        forgetting=Forgetting(
            versions=served,
            conditions=tuple(names),
            matrix=tuple(tuple(float(v) for v in row) for row in matrix),
        ),
        stored=Stored(
            conditions={c: Held(events=800, bytes=800 * 212 * 24) for c in names},
            versions=6,
            bytes=402_133,
        ),
        leads=noticed(),
        cost=Cost(updates=7, labelled_events=7 * 1400, seconds=14.2 if name != "retrain" else 160),
    )


def noticed() -> tuple[Lead, ...]:
    """Resolution is seen 3400 events early, the quality word 200 late, a shift by labels alone."""
    fills, found = season_fills(), []
    for before, fill in pairwise(fills):
        if fill.condition == before.condition:
            continue
        labels = fills[fill.fill].end + HOUR if fill.fill < len(fills) else None
        flag = {"inner barrel resolution": fill.start + HOUR, "layer 1 tripped": fill.start + 2}
        late = None if fill.condition in ("nominal", "layer 1 tripped") else labels
        earlier = 3400 if fill.condition == "inner barrel resolution" else None
        if fill.condition == "quality word" and labels is not None:
            flag["quality word"], earlier = labels + HOUR, -200
        time = flag.get(fill.condition)
        found.append(
            Lead(
                fill=fill.fill,
                condition=fill.condition,
                start=fill.start,
                flag=time,
                monitor=None if time is None else "score-ks",
                delay=None if time is None else 450,
                late=late,
                late_monitor=None if late is None else "error-cusum",
                earlier=earlier,
                stood=("late-metric",) if fill.condition == "nominal" else (),
            )
        )
    return tuple(found)


def bins(rng: np.random.Generator, factor: float) -> tuple[Calibration, ...]:
    stated = np.geomspace(0.03, 0.9, 8)
    observed = stated * factor * rng.lognormal(0, 0.08, 8)
    counts = (4000 * np.exp(-np.arange(8) / 2)).astype(int)
    return tuple(
        Calibration(stated=float(s), observed=float(o), n=int(n))
        for s, o, n in zip(stated, observed, counts, strict=True)
    )


@pytest.fixture(scope="session")
def season() -> Summary:
    return season_summary()
