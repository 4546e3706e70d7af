"""A summary from what a registry holds: the journal is the only source, so a report can be made
anew at any time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import stillfit
from stillfit.apps.leads import leads
from stillfit.apps.summary import (
    Calibration,
    Circuit,
    Cost,
    Decision,
    Fill,
    Forgetting,
    Held,
    Kind,
    Lane,
    Metric,
    RegistrySize,
    Score,
    Stored,
    Summary,
    Uncertainty,
    stated_figures,
)
from stillfit.core.values import JSON
from stillfit.registry import Entry, Registry

TOLD = ("deploy", "alarm", "clear", "request", "declined", "refused", "staged", "switch", "kept",
        "rollback", "hold", "resume", "call", "withdrawn", "monitor-failed",
        "updater-failed", "policy-failed", "synthesised", "synthesis-failed", "note")  # fmt: skip
L1T_METRICS = (
    Metric(name="efficiency", title="Efficiency |dz| < 0.15 cm"),
    Metric(name="balanced_accuracy", title="Balanced accuracy of the association"),
    Metric(name="auc", title="AUC of the association"),
    Metric(name="width_cm", title="Core width of the z0 residual", unit="cm", better="lower"),
)
L1T_SIGMA = Uncertainty(
    name="sigma_cm",
    title="Median stated uncertainty of z0",
    unit="cm",
    against="width_cm",
    low="sigma_cm_low",
    high="sigma_cm_high",
)
REGRESSION_METRICS = (
    Metric(name="error", title="Mean absolute error", better="lower"),
    Metric(name="crps", title="CRPS", better="lower"),
    Metric(name="rmse", title="RMSE", better="lower"),
    Metric(name="coverage_90", title="Coverage of 90 % intervals", better="neither"),
)
REGRESSION_SIGMA = Uncertainty(
    name="sigma", title="Mean stated uncertainty", unit="", against="rmse"
)
CLASS_METRICS = (
    Metric(name="error", title="Error rate", better="lower"),
    Metric(name="log_loss", title="Log loss", unit="nats", better="lower"),
)


def collect(
    registry: Registry,
    *,
    title: str,
    kind: Kind,
    seed: int,
    metrics: Sequence[Metric],
    titles: Mapping[str, str],
    fills: Sequence[Fill] = (),
    uncertainty: Uncertainty | None = None,
    baseline: str | None = None,
    run: Mapping[str, JSON] | None = None,
) -> Summary:
    """What every lane reached, decided and cost, from the journal and the measurements.

    `titles`: name of each lane for eyes, in the order of the report. `fills`: the time line; where
    it is empty the label batches themselves are the periods.
    """
    history = registry.history()
    figures = [*(m.name for m in metrics), *stated_figures(uncertainty)]
    if not fills:
        fills = _periods([e for e in history if e.kind == "performance"])
    lanes = {
        name: _lane(registry, name, shown, [e for e in history if e.lane == name], figures, fills)
        for name, shown in titles.items()
    }
    return Summary(
        title=title,
        kind=kind,
        stillfit=stillfit.__version__,
        seed=seed,
        metrics=tuple(metrics),
        lanes=lanes,
        decisions=tuple(
            Decision(
                time=e.time,
                fill=_fill_at(fills, e.time),
                lane=e.lane,
                what=_what(e),
                version=e.version,
                because=_reason(e),
            )
            for e in history
            if e.kind in TOLD and e.lane in titles
        ),
        fills=tuple(fills),
        registry=RegistrySize(
            versions=len(registry.versions()),
            bytes=sum(registry.manifest(version).nbytes for version in registry.versions()),
            journal=len(history),
        ),
        uncertainty=uncertainty,
        baseline=baseline if baseline in titles else None,
        run=run or {},
    )


def _lane(
    registry: Registry,
    name: str,
    title: str,
    entries: list[Entry],
    figures: list[str],
    fills: Sequence[Fill],
) -> Lane:
    rows: dict[int, list[Entry]] = {}
    for place, entry in enumerate(e for e in entries if e.kind == "performance"):
        fill = entry.payload.get("fill")
        rows.setdefault(place + 1 if fill is None else int(str(fill)), []).append(entry)
    experience = [e for e in entries if e.kind == "experience"]
    versions = sorted({e.version for e in entries if e.version is not None})
    updates = [e for e in entries if e.kind == "staged"]
    measured = [m for m in registry.measurements(name) if "seconds" in m.figures]
    last: Mapping[str, Any] = experience[-1].payload if experience else {}
    return Lane(
        title=title,
        fills=tuple(_score(fill, found, figures) for fill, found in sorted(rows.items())),
        calibration=_calibration([e for e in entries if e.kind == "performance"]),
        forgetting=Forgetting(
            versions=tuple(last["versions"]),
            conditions=tuple(last["conditions"]),
            matrix=tuple(tuple(row) for row in last["matrix"]),
        )
        if last.get("matrix")
        else None,
        stored=Stored(
            conditions={
                condition: Held(events=held["events"], bytes=held["bytes"])
                for condition, held in last.get("stored", {}).items()
            },
            versions=len(versions),
            bytes=sum(registry.manifest(version).nbytes for version in versions),
        ),
        cost=Cost(
            updates=len(updates),
            labelled_events=sum(int(e.payload["labelled_events"]) for e in updates),  # type: ignore[arg-type, misc]
            seconds=sum(float(m.figures["seconds"]) for m in measured),
        ),
        leads=leads(entries, fills),
        circuits=tuple(_circuits(registry, entries)),
    )


def _circuits(registry: Registry, entries: Sequence[Entry]) -> Iterator[Circuit]:
    """The versions that served, as circuits, in order of time; none where nothing measured them."""
    for entry in entries:
        if entry.version is None or entry.kind not in ("deploy", "switch", "rollback"):
            continue
        facts = registry.manifest(entry.version).facts
        size = facts.footprint
        if size.used():
            yield Circuit(
                version=entry.version,
                time=entry.time,
                update_class=facts.update_class,
                method=size.method,
                lut=size.lut,
                ff=size.ff,
                dsp=size.dsp,
                bram=size.bram,
                latency_cycles=size.latency_cycles,
                latency_ns=size.latency_ns,
            )


def _score(fill: int, entries: list[Entry], figures: list[str]) -> Score:
    """One row from the label batches of a fill: figures weighted by events."""
    parts: list[Mapping[str, Any]] = [entry.payload for entry in entries]
    n = sum(int(part["n"]) for part in parts)
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    for name in figures:
        told = [p for p in parts if p["figures"].get(name) is not None]
        if not told:
            continue
        weight = sum(p["n"] for p in told)
        values[name] = sum(p["n"] * p["figures"][name] for p in told) / weight
        if all(p["figures"].get(f"{name}_err") is not None for p in told):
            squares = sum((p["n"] * p["figures"][f"{name}_err"]) ** 2 for p in told)
            errors[name] = squares**0.5 / weight
    most = max(entries, key=lambda entry: int(str(entry.payload["n"])))
    return Score(
        fill=fill,
        condition=str(most.payload["condition"]),
        n=n,
        version=most.version,
        values=values,
        errors=errors,
    )


def _calibration(entries: list[Entry]) -> tuple[Calibration, ...]:
    """Stated against observed over the whole run: the bins of all batches, in ten groups."""
    bins: list[Mapping[str, Any]] = []
    for entry in entries:
        bins.extend(entry.payload.get("reliability") or [])  # type: ignore[arg-type]
    bins.sort(key=lambda b: b["stated"])
    size = max(1, -(-len(bins) // 10))
    groups = [bins[first : first + size] for first in range(0, len(bins), size)]
    return tuple(
        Calibration(
            stated=sum(b["stated"] * b["n"] for b in group) / sum(b["n"] for b in group),
            observed=sum(b["observed"] * b["n"] for b in group) / sum(b["n"] for b in group),
            n=sum(int(b["n"]) for b in group),
        )
        for group in groups
    )


def _periods(entries: list[Entry]) -> list[Fill]:
    first = entries[0].lane if entries else ""
    return [
        Fill(
            fill=place,
            condition=str(entry.payload["condition"]),
            start=float(str(entry.payload["first"])),
            end=float(str(entry.payload["last"])),
        )
        for place, entry in enumerate((e for e in entries if e.lane == first), start=1)
    ]


def _fill_at(fills: Sequence[Fill], time: float) -> int:
    """The fill that ran, or the last one before, at a time."""
    before = [fill.fill for fill in fills if fill.start <= time]
    return before[-1] if before else (fills[0].fill if fills else 0)


def _what(entry: Entry) -> str:
    rung = entry.payload.get("rung")
    return "redeploy" if entry.kind == "switch" and rung == "redeploy" else entry.kind


def _reason(entry: Entry) -> str:
    rung = entry.payload.get("rung")
    told = f"{rung}: " if rung and entry.kind in ("declined", "refused") else ""
    return told + entry.because
