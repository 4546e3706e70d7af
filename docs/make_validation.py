"""Plots and figures of docs/l1t-detector.md, from the shipped library.

Run from the repository root: `python docs/make_validation.py [CMS_TRACKS.csv]`. Writes PNG files to
docs/img/ and prints the tables of the page. The optional file holds the CMS track sample that the
page compares with (21 features and a label per row); without it the comparison is left out. Takes
about a minute on one core. Figures are for the test split of the library.
"""

import itertools
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from stillfit.core.seeds import Seeds
from stillfit.l1t import library
from stillfit.l1t.composition import compose
from stillfit.l1t.conditions import (
    DEAD_REGIONS,
    Conditions,
    DeadRegion,
    HotRegion,
    LayerEfficiency,
    SectorShift,
    nominal,
)
from stillfit.l1t.detector import simulate

IMAGES = Path(__file__).parent / "img"
EVENTS = 8000
SHIPPED = library.load()
SEEDS = Seeds(1)
ETA = np.linspace(0, 2.4, 13)
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555")


class Sample:
    """Events under one state of conditions, with the particle behind each track."""

    def __init__(self, conditions, events=EVENTS, split="test"):
        self.particles = compose(
            SHIPPED,
            n=events,
            pileup=conditions.pileup,
            z_beam=conditions.z_beam,
            sigma_z=conditions.sigma_z,
            processes=conditions.processes.weights(),
            rng=SEEDS.rng("events"),
            split=split,
        )
        self.tracks = simulate(self.particles, conditions, SEEDS.rng("detector"))
        events = np.repeat(np.arange(len(self.tracks)), self.tracks.counts)
        self.genuine = self.tracks.is_fake == 0
        self.row = (self.particles.offsets[events] + self.tracks.particle)[self.genuine]
        self.off = self.tracks.z0[self.genuine] - self.particles.z0[self.row]
        self.relative = self.tracks.pt[self.genuine] / self.particles.pt[self.row] - 1
        self.eta = np.abs(self.particles.eta[self.row])
        self.pt = self.particles.pt[self.row]
        self.found = np.zeros(len(self.particles.pt), bool)
        self.found[self.row] = True


def width(values):
    """Half of the central 68 %, NaN for fewer than 30 values."""
    if len(values) < 30:
        return np.nan
    low, high = np.percentile(values, [15.87, 84.13])
    return (high - low) / 2


def parametrised(eta):
    return 0.09867 + 0.0007 * eta + 0.0587 * eta**2


def binned(x, edges, values, statistic):
    place = np.digitize(x, edges) - 1
    return np.array([statistic(values[place == i]) for i in range(len(edges) - 1)])


def share(passed):
    """Mean and binomial error."""
    n = max(len(passed), 1)
    p = passed.mean() if len(passed) else np.nan
    return p, np.sqrt(max(p * (1 - p), 1 / n) / n)


def save(figure, name):
    IMAGES.mkdir(exist_ok=True)
    figure.savefig(IMAGES / f"l1t-{name}.png", dpi=110, bbox_inches="tight")
    plt.close(figure)


def middle(edges):
    return 0.5 * (edges[1:] + edges[:-1])


def resolutions(nominal_sample):
    s = nominal_sample
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    curve = np.linspace(0, 2.4, 100)
    left.plot(curve, parametrised(curve), "k--", label="parametrisation")
    left.fill_between(
        curve,
        0.75 * parametrised(curve),
        1.25 * parametrised(curve),
        color="k",
        alpha=0.1,
        label="within 25 %",
    )
    cases = (("all pT above 2 GeV", 2, 1e9), ("2 to 3 GeV", 2, 3), ("above 8 GeV", 8, 1e9))
    for colour, (label, low, high) in zip(COLOURS, cases, strict=False):
        rows = (s.pt >= low) & (s.pt < high)
        sigma = binned(s.eta[rows], ETA, s.off[rows], width)
        left.plot(middle(ETA), sigma, "o-", ms=4, color=colour, label=label)
        sigma = binned(s.eta[rows], ETA, s.relative[rows], width)
        right.plot(middle(ETA), 100 * sigma, "o-", ms=4, color=colour, label=label)
    left.set(title="Resolution of z0", xlabel="|eta|", ylabel="half of central 68 % (cm)", ylim=0)
    right.set(title="Resolution of pT", xlabel="|eta|", ylabel="half of central 68 % (%)", ylim=0)
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    save(figure, "resolution")
    all_pt = binned(s.eta, ETA, s.off, width)
    bias = binned(s.eta, ETA, s.off, np.median)
    pt = binned(s.eta, ETA, s.relative, width)
    print("\n| abs(eta) | sigma(z0) cm | parametrisation | ratio | bias cm | sigma(pT)/pT % |")
    print("|---|---|---|---|---|---|")
    for i, eta in enumerate(middle(ETA)):
        want = parametrised(eta)
        print(
            f"| {ETA[i]:.1f}-{ETA[i + 1]:.1f} | {all_pt[i]:.3f} | {want:.3f} | "
            f"{all_pt[i] / want:.2f} | {bias[i]:+.4f} | {100 * pt[i]:.2f} |"
        )


def efficiencies(s):
    p = s.particles
    names = {1: "muons", 2: "hadrons", 0: "electrons"}
    fiducial = (np.abs(p.eta) < 2.3) & (np.abs(p.z0) < 15) & (p.r_prod < 1.0)
    pt_edges = np.array([1.5, 1.7, 1.9, 2.0, 2.1, 2.2, 2.3, 2.5, 2.75, 3, 3.5, 4, 5, 7, 10, 20, 50])
    eta_edges = np.linspace(-2.4, 2.4, 25)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    for colour, (kind, name) in zip(COLOURS, names.items(), strict=False):
        rows = fiducial & (p.kind == kind)
        values = binned(p.pt[rows], pt_edges, s.found[rows], share)
        left.errorbar(
            middle(pt_edges), values[:, 0], values[:, 1], fmt="o", ms=3, color=colour, label=name
        )
        rows = (np.abs(p.z0) < 15) & (p.r_prod < 1.0) & (p.kind == kind) & (p.pt > 3)
        values = binned(p.eta[rows], eta_edges, s.found[rows], share)
        right.errorbar(
            middle(eta_edges), values[:, 0], values[:, 1], fmt="o", ms=3, color=colour, label=name
        )
        plateau = share(s.found[rows & fiducial])
        print(f"plateau efficiency of {name} above 3 GeV: {plateau[0]:.3f} +- {plateau[1]:.3f}")
    left.set(title="Efficiency and turn-on", xlabel="pT (GeV)", ylabel="efficiency", xscale="log")
    left.set_xticks([1.5, 2, 3, 5, 10, 20, 50], ["1.5", "2", "3", "5", "10", "20", "50"])
    left.minorticks_off()
    right.set(title="Efficiency, pT above 3 GeV", xlabel="eta", ylabel="efficiency")
    for axis in (left, right):
        axis.set_ylim(0, 1.05)
        axis.legend(fontsize=8, loc="lower right")
    save(figure, "efficiency")


def fakes(s):
    t = s.tracks
    fake = t.is_fake == 1
    cuts = (t.chi2rphi < 20) & (t.chi2rz < 5) & (t.bendchi2 < 2.25)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    pt_edges = np.array([2, 2.5, 3, 4, 6, 10, 20, 50])
    for colour, (name, rows) in zip(
        COLOURS,
        (("all tracks", np.ones(len(fake), bool)), ("after quality cuts", cuts)),
        strict=False,
    ):
        values = binned(t.eta[rows], np.linspace(-2.4, 2.4, 25), fake[rows], share)
        left.errorbar(
            middle(np.linspace(-2.4, 2.4, 25)),
            values[:, 0],
            values[:, 1],
            fmt="o",
            ms=3,
            color=colour,
            label=name,
        )
        values = binned(t.pt[rows], pt_edges, fake[rows], share)
        right.errorbar(
            middle(pt_edges), values[:, 0], values[:, 1], fmt="o", ms=3, color=colour, label=name
        )
        kept = rows[~fake].mean()
        print(f"fakes among {name}: {fake[rows].mean():.3f}; genuine tracks kept: {kept:.3f}")
    left.set(title="Share of fakes", xlabel="eta", ylabel="fakes / tracks", ylim=0)
    right.set(title="Share of fakes", xlabel="pT (GeV)", ylabel="fakes / tracks", ylim=0)
    right.set_xscale("log")
    right.set_xticks([2, 3, 5, 10, 20, 50], ["2", "3", "5", "10", "20", "50"])
    right.minorticks_off()
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    save(figure, "fakes")
    unique = len(np.unique(s.row))
    print(f"duplicates among genuine tracks: {1 - unique / len(s.row):.3f}")


def counts(s):
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    bins = np.arange(0, 420, 10)
    for colour, pileup in zip(COLOURS, (140.0, 200.0, 250.0), strict=False):
        sample = s if pileup == 200 else Sample(Conditions(pileup=pileup), 2000)
        tracks = sample.tracks.counts
        label = f"pile-up {pileup:g}: mean {tracks.mean():.0f}, SD {tracks.std():.0f}"
        left.hist(tracks, bins, histtype="step", density=True, color=colour, label=label, lw=1.5)
        print(
            f"pile-up {pileup:g} + ttbar: {tracks.mean():.1f} tracks, SD {tracks.std():.1f}, "
            f"{sample.tracks.is_fake.mean():.3f} fake, "
            f"{sample.tracks.is_pv.sum() / len(sample.tracks):.1f} from the hard scatter"
        )
    left.set(title="Tracks per event", xlabel="tracks", ylabel="events (normalised)")
    left.legend(fontsize=8)
    t = s.tracks
    for colour, name, rows in (
        (COLOURS[0], "genuine", t.is_fake == 0),
        (COLOURS[1], "fake", t.is_fake == 1),
    ):
        shares = np.bincount(t.nstub[rows], minlength=8)[4:7] / rows.sum()
        right.bar(
            np.arange(4, 7) + (0.2 if name == "fake" else -0.2),
            shares,
            0.4,
            color=colour,
            label=name,
        )
        print(f"stubs of {name} tracks, shares of 4, 5, 6: {np.round(shares, 3)}")
    right.set(title="Stubs per track", xlabel="stubs", ylabel="share of tracks", xticks=(4, 5, 6))
    right.legend(fontsize=8)
    save(figure, "counts")


def cms_sample(path):
    """chi2rphi, chi2rz (per degree of freedom), bendchi2, is_fake of the CMS sample."""
    table = np.loadtxt(path, delimiter=",")
    freedom = table[:, 4] - 2
    columns = (table[:, 2] / freedom, table[:, 3] / freedom, table[:, 1])
    return columns, table[:, -1] == 0


def chi2s(s, path):
    t = s.tracks
    columns = (t.chi2rphi, t.chi2rz, t.bendchi2)
    names = ("chi2 in r-phi per d.o.f.", "chi2 in r-z per d.o.f.", "bend chi2 per stub")
    edges = (np.geomspace(0.01, 2000, 40), np.geomspace(0.01, 100, 40), np.geomspace(0.05, 30, 40))
    figure, axes = plt.subplots(1, 3, figsize=(14, 4))
    other = cms_sample(path) if path else None
    for axis, name, values, bins, i in zip(axes, names, columns, edges, range(3), strict=True):
        for colour, label, rows in (
            (COLOURS[0], "genuine", t.is_fake == 0),
            (COLOURS[1], "fake", t.is_fake == 1),
        ):
            weights = np.full(rows.sum(), 1 / rows.sum())
            axis.hist(
                values[rows],
                bins,
                weights=weights,
                histtype="step",
                color=colour,
                lw=1.5,
                label=label,
            )
            low, mid, high = np.percentile(values[rows], [16, 50, 84])
            print(f"{name}, {label}: median {mid:.2f}, central 68 % {low:.2f} to {high:.2f}")
            if other:
                mine = other[1] == (label == "fake")
                coarse = bins[::3]
                n = np.histogram(other[0][i][mine], coarse)[0]
                axis.errorbar(
                    np.sqrt(coarse[1:] * coarse[:-1]),
                    n / mine.sum() / 3,
                    np.sqrt(n) / mine.sum() / 3,
                    fmt="o",
                    ms=3,
                    color=colour,
                    label=f"{label}, CMS sample",
                )
                low, mid, high = np.percentile(other[0][i][mine], [16, 50, 84])
                print(f"    CMS sample: median {mid:.2f}, central 68 % {low:.2f} to {high:.2f}")
        axis.set(xscale="log", xlabel=name, ylabel="share of tracks")
        axis.set_ylim(0, 1.45 * axis.get_ylim()[1])
        axis.legend(fontsize=7, loc="upper left", ncols=2)
    figure.suptitle("chi2 of the fits and of the bends")
    save(figure, "chi2")


CASES = {
    "nominal": nominal(),
    "barrel against disks 1 mm": Conditions(barrel_z_shift=0.1),
    "barrel against disks 2 mm": Conditions(barrel_z_shift=0.2),
    "barrel +2 mm in a third of phi": Conditions(
        sector_shifts=(SectorShift(z_shift=0.2, phi=(-np.pi, -np.pi / 3)),)
    ),
    "barrel PS resolution x5": Conditions(barrel_ps_resolution=5.0),
    "inner layer off, good fakes x3": Conditions(
        layer_efficiency=LayerEfficiency(B1=0.0), good_fakes=3.0
    ),
    "inner layer dead in half of phi": Conditions(
        dead_regions=(DeadRegion(phi=(0.0, np.pi), layers=("B1",)),)
    ),
    "dead sector of 40 degrees": Conditions(dead_regions=(DEAD_REGIONS["1"],)),
    "hit efficiency 0.90": Conditions(hit_efficiency=0.90),
    "3000 fb-1 of ageing": Conditions(integrated_luminosity=3000.0),
    "pile-up 250": Conditions(pileup=250.0),
    "pT scale 1.05": Conditions(pt_scale=1.05),
    "hot region, 40 degrees x3": Conditions(hot_regions=(HotRegion(phi=(0.0, 0.698)),)),
    "fakes x3": Conditions(fake_scale=3.0),
    "noise x2": Conditions(noise=2.0),
}


def condition_table():
    edges = (0.0, 0.9, 1.3, 2.0, 2.4)
    print(
        "\n| condition | tracks | fakes | stubs | bias / width of z0 (mm) by abs(eta): "
        "0-0.9 | 0.9-1.3 | 1.3-2.0 | 2.0-2.4 |"
    )
    print("|---" * 8 + "|")
    for name, conditions in CASES.items():
        s = Sample(conditions, 1500)
        cells = [
            f"{10 * np.median(v):+.1f} / {10 * width(v):.1f}"
            for v in (
                s.off[(s.eta >= low) & (s.eta < high)] for low, high in itertools.pairwise(edges)
            )
        ]
        t = s.tracks
        print(
            f"| {name} | {t.counts.mean():.0f} | {t.is_fake.mean():.3f} | "
            f"{t.nstub[s.genuine].mean():.2f} | " + " | ".join(cells) + " |"
        )


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else None
    sample = Sample(nominal())
    resolutions(sample)
    efficiencies(sample)
    fakes(sample)
    counts(sample)
    chi2s(sample, path)
    condition_table()


if __name__ == "__main__":
    main()
