"""The uses of the vertex's uncertainty, for each method that states one: rows for a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from stillfit.core.arrays import Arrays, Column, Ragged
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.predictive import Mixture, Predictive
from stillfit.core.seeds import Seeds
from stillfit.l1t.regions import (
    BeamSpot,
    FixedLength,
    FoundOrLost,
    IntervalLength,
    MembersLength,
    Region,
    SigmaLength,
)
from stillfit.l1t.stated import Estimate, Stated, halves
from stillfit.l1t.uses import (
    REPLICAS,
    WindowUse,
    association_window,
    events_needed,
    network_association,
    region_of_interest,
)

Row: TypeAlias = dict[str, Any]
COVERAGES = (0.99, 0.999)


def uses_table(
    methods: Mapping[str, tuple[Predictive, Arrays]],
    tracks: Arrays,
    truth: Arrays,
    *,
    seed: int,
    coverages: Sequence[float] = COVERAGES,
    replicas: int = REPLICAS,
) -> list[Row]:
    """Rows of every method's association windows and regions of interest, on the same events.

    `methods`: prediction of z0 and outputs (`association`, ragged, as the task gives it; optional
    `track_sigma`, ragged, cm) by name. `tracks`: ragged `z0` and `eta`; `truth`: `z0` (n,) and
    ragged `is_pv`. A random half, the same for all methods, tunes, the other judges.

    Every row has `method`, `use` ("association" or "region"), `rule`, `target` (the table's
    efficiency as judged, or the containment asked for), `k`, `event_factor`, `achieved` (track
    efficiency or containment), `value` (purity, or mean length in cm), `reference` (the table's
    purity or the fixed length's mean), `better` (purity minus the reference; share of the fixed
    length saved), the last four with `_low` and `_high` ends of 95 %, `n_calibration`, `n_test`
    and `refused`: None, or why there are no figures (all then None).

    Cost: about 20 s per method for 80 000 events with 200 replicas.
    """
    if not methods:
        raise ConfigError("there is no method to judge; give predictions by name")
    rows: list[Row] = []
    for name, (predictive, outputs) in methods.items():
        columns: dict[str, Column] = {"z0": tracks["z0"], "eta": tracks["eta"]}
        columns["is_pv"] = truth["is_pv"]
        for output, column in (("association", "association"), ("track_sigma", "sigma")):
            if isinstance(outputs.get(output), Ragged):
                columns[column] = outputs[output]
        z0 = truth["z0"]
        assert not isinstance(z0, Ragged)
        stated = Stated(predictive, z0, columns)
        tune, judge = halves(len(stated), Seeds(seed).rng("uses", "halves"))
        rows += uses_rows(
            name,
            stated.take(tune),
            stated.take(judge),
            seed=seed,
            coverages=coverages,
            replicas=replicas,
        )
    return rows


def uses_rows(
    method: str,
    calibration: Stated,
    test: Stated,
    *,
    seed: int,
    coverages: Sequence[float] = COVERAGES,
    replicas: int = REPLICAS,
) -> list[Row]:
    """The rows of one method, tuned on `calibration` and judged on `test`.

    These may be of different conditions: what was tuned at nominal then meets a shift.
    """
    # The same draws for all methods and rules, so that their figures can be compared.
    seeds = Seeds(seed)
    rows = []
    for rule, arguments in association_rules(calibration).items():
        rng = seeds.rng("uses", "association")
        if rule == "network":
            use = network_association(calibration, test, rng=rng, replicas=replicas)
        else:
            use = association_window(calibration, test, rng=rng, replicas=replicas, **arguments)
        rows.append(_association_row(method, rule, use))
    for coverage in coverages:
        for rule, region in region_rules(calibration.predictive).items():
            rows.append(
                region_row(
                    method, rule, region, calibration, test, coverage, seed=seed, replicas=replicas
                )
            )
    return rows


def association_rules(stated: Stated) -> dict[str, dict[str, Any]]:
    """Windows by name: what each part of the information adds."""
    rules: dict[str, dict[str, Any]] = {
        "event sigma": {"event": (1.0,), "track": 0.0},
        "track sigma": {"event": (0.0,)},
        "both": {},
        "density, track": {"event": (0.0,), "shape": "laplace"},
        "density, both": {"shape": "laplace"},
    }
    if "association" in stated.tracks:
        rules["network"] = {}
    return rules


def region_rules(predictive: Predictive) -> dict[str, Region]:
    """Regions by name; the members' only where there are some."""
    rules: dict[str, Region] = {
        "beam spot": BeamSpot(),
        "fixed": FixedLength(),
        "sigma": SigmaLength(),
        "interval": IntervalLength(),
        "found or lost": FoundOrLost(),
    }
    if isinstance(predictive, Mixture) and predictive.means.shape[-1] > 1:
        rules["members"] = MembersLength()
    return rules


def _association_row(method: str, rule: str, use: WindowUse) -> Row:
    return {
        **_blank(method, "association", rule, use.table_efficiency.value),
        "k": use.k,
        "event_factor": None if use.window is None else use.window.event,
        **_ends("achieved", use.efficiency),
        **_ends("value", use.purity),
        **_ends("reference", use.table_purity),
        **_ends("better", use.gain),
        "n_calibration": use.n_calibration,
        "n_test": use.n_test,
    }


def region_row(
    method: str,
    rule: str,
    region: Region,
    calibration: Stated,
    test: Stated,
    coverage: float,
    *,
    seed: int,
    replicas: int = REPLICAS,
) -> Row:
    """The row of one region at one containment; a refusal where there are too few events."""
    rng = Seeds(seed).rng("uses", "region")
    row = _blank(method, "region", rule, coverage)
    try:
        use = region_of_interest(
            calibration, test, region, coverage=coverage, rng=rng, replicas=replicas
        )
    except DataError as error:
        if len(calibration) // 2 >= events_needed(coverage):
            raise
        return {**row, "refused": str(error)}
    return {
        **row,
        "k": use.k,
        **_ends("achieved", use.containment),
        **_ends("value", use.length),
        **_ends("reference", use.fixed_length),
        **_ends("better", use.shorter),
        "n_calibration": use.n_calibration,
        "n_test": use.n_test,
    }


def _blank(method: str, use: str, rule: str, target: float) -> Row:
    row: Row = {"method": method, "use": use, "rule": rule, "target": target}
    row |= {"k": None, "event_factor": None}
    for name in ("achieved", "value", "reference", "better"):
        row |= {name: None, f"{name}_low": None, f"{name}_high": None}
    return {**row, "n_calibration": None, "n_test": None, "refused": None}


def _ends(name: str, estimate: Estimate) -> Row:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
