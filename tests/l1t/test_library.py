"""The shipped particle library against the figures of its documentation, and its files."""

import importlib.metadata
import json
import shutil

import numpy as np
import pytest

from stillfit.core.errors import ConfigError, DataError, MissingExtraError
from stillfit.l1t import library
from stillfit.l1t.library import Chunk, Process


@pytest.fixture(scope="module")
def shipped():
    return library.load()


def tracks_per_interaction(lib, process):
    """Charged particles with pT > 2, |eta| < 2.4 of every interaction of a process."""
    rows = lib.interactions(process)
    first, last = lib.offsets[rows[0]], lib.offsets[rows[-1] + 1]
    seen = (lib.pt[first:last] > 2) & (np.abs(lib.eta[first:last]) < 2.4)
    total = np.concatenate([[0], np.cumsum(seen)])
    return np.diff(total[lib.offsets[rows[0] : rows[-1] + 2] - first])


def some_chunk(rng, interactions=200):
    counts = rng.poisson(3.0, interactions)
    n = int(counts.sum())
    far = rng.random((n, 1)) < 0.3
    return Chunk(
        counts=counts,
        pt=1.5 * np.exp(rng.exponential(0.7, n)),
        eta=rng.uniform(-2.6, 2.6, n),
        phi=rng.uniform(-np.pi, np.pi, n),
        vertex=np.where(far, rng.normal(0, 1, (n, 3)), 0.0),
        charge=rng.choice(np.array([-1, 1], np.int8), n),
        kind=rng.integers(0, 3, n).astype(np.int8),
        failed=0,
        sigma_mb=79.0,
    )


# --- the shipped library --------------------------------------------------------------------


def test_the_shipped_library_is_large_enough_and_small_enough(shipped):
    wanted = {"inelastic": 200_000, "ttbar": 10_000, "zmumu": 20_000, "hbb": 5_000}
    assert set(shipped.processes) == set(wanted)
    for process, least in wanted.items():
        assert len(shipped.interactions(process)) >= least
        assert shipped.meta[process]["energy_gev"] == 14_000
        assert shipped.meta[process]["generator"] == "pythia8mc 8.317.2"
    assert sum(file.stat().st_size for file in library.DATA.iterdir()) <= 16e6


@pytest.mark.parametrize(
    ("process", "mean"), [("inelastic", 0.910), ("ttbar", 30.0), ("zmumu", 5.8), ("hbb", 15.2)]
)
def test_charged_tracks_per_interaction(shipped, process, mean):
    """The expected figures come from small samples of another generation: 3 % is their worth."""
    counts = tracks_per_interaction(shipped, process)
    tolerance = 0.03 * mean
    error = counts.std() / np.sqrt(len(counts))
    assert 4 * error < tolerance  # the sample can tell
    assert counts.mean() == pytest.approx(mean, abs=tolerance)


def test_two_in_three_inelastic_interactions_leave_no_track_and_are_counted(shipped):
    counts = tracks_per_interaction(shipped, "inelastic")
    assert (counts == 0).mean() == pytest.approx(0.686, abs=0.004)
    assert (shipped.counts[shipped.interactions("inelastic")] == 0).mean() > 0.5


def test_particles_keep_the_selection_and_symmetries(shipped):
    assert shipped.pt.min() >= 1.5 * (1 - 1e-6)
    assert np.abs(shipped.eta).max() <= 2.6
    assert set(np.unique(shipped.charge)) == {-1, 1}
    assert set(np.unique(shipped.kind)) == {0, 1, 2}
    n = len(shipped.pt)
    # Particles of an event are correlated: ten times the error of independent ones.
    assert abs(np.mean(np.sign(shipped.eta))) < 10 / np.sqrt(n)
    assert abs(np.mean(np.cos(shipped.phi))) < 10 / np.sqrt(n)
    assert np.abs(shipped.phi).max() <= np.float32(np.pi)


def test_the_two_hardest_muons_of_zmumu_have_the_mass_of_the_z(shipped):
    masses = []
    for row in shipped.interactions("zmumu")[:3000]:
        mine = slice(shipped.offsets[row], shipped.offsets[row + 1])
        muons = np.flatnonzero(shipped.kind[mine] == library.MUON)
        muons = muons[np.argsort(-shipped.pt[mine][muons])][:2]
        if len(muons) < 2:
            continue
        a, b = muons
        pt, eta, phi = (x[mine] for x in (shipped.pt, shipped.eta, shipped.phi))
        masses.append(
            np.sqrt(2 * pt[a] * pt[b] * (np.cosh(eta[a] - eta[b]) - np.cos(phi[a] - phi[b])))
        )
    assert len(masses) > 1000
    assert np.median(masses) == pytest.approx(91.0, abs=0.5)


def test_decays_of_b_hadrons_are_displaced_by_millimetres(shipped):
    def share(process):
        rows = shipped.interactions(process)
        mine = slice(shipped.offsets[rows[0]], shipped.offsets[rows[-1] + 1])
        return np.mean((np.abs(shipped.d0[mine]) > 0.01) & (shipped.r_prod[mine] < 2))

    assert share("hbb") > 5 * share("inelastic")


def test_prompt_particles_come_from_their_interaction_exactly(shipped):
    exact = (shipped.r_prod == 0) & (shipped.z0 == 0)
    assert exact.mean() > 0.6
    assert not shipped.d0[exact].any()
    # Vertices are stored to the micrometre: a tau or charm may decay within it, but not far away.
    assert np.abs(shipped.z0[shipped.r_prod == 0]).max() < 0.002


# --- splits ---------------------------------------------------------------------------------


def test_splits_are_80_10_10_disjoint_and_complete(shipped):
    for process in shipped.processes:
        parts = [shipped.interactions(process, split) for split in library.SPLITS]
        joined = np.concatenate(parts)
        every = shipped.interactions(process)
        np.testing.assert_array_equal(np.sort(joined), every)
        assert [round(len(part) / len(every), 3) for part in parts] == [0.8, 0.1, 0.1]


# --- geometry -------------------------------------------------------------------------------


def test_perigee_finds_the_start_of_a_helix_from_a_later_point():
    rng = np.random.default_rng(11)
    n = 500
    pt, eta = rng.uniform(1.5, 20, n), rng.uniform(-2.5, 2.5, n)
    phi, z0, d0 = rng.uniform(-np.pi, np.pi, n), rng.normal(0, 5, n), rng.normal(0, 1, n)
    charge = rng.choice(np.array([-1, 1], np.int8), n)
    arc, radius = rng.uniform(0, 60, n), pt / (0.00299792458 * 3.8)
    later = phi - charge * arc / radius  # positive particles turn clockwise
    x = d0 * np.sin(phi) + charge * radius * (np.sin(phi) - np.sin(later))
    y = -d0 * np.cos(phi) - charge * radius * (np.cos(phi) - np.cos(later))
    vertex = np.stack([x, y, z0 + arc * np.sinh(eta)], axis=1)
    at, z, d = library.perigee(vertex, pt, eta, later, charge)
    np.testing.assert_allclose(np.cos(at - phi), 1, atol=1e-12)
    np.testing.assert_allclose(z, z0, atol=1e-8)
    np.testing.assert_allclose(d, d0, atol=1e-8)


def test_a_fast_particle_has_the_perigee_of_a_straight_line():
    rng = np.random.default_rng(12)
    vertex, pt = rng.normal(0, 1, (100, 3)), np.full(100, 1e5)
    eta, phi = rng.uniform(-2, 2, 100), rng.uniform(-3, 3, 100)
    charge = np.ones(100, np.int8)
    at, z0, d0 = library.perigee(vertex, pt, eta, phi, charge)
    straight = library.perigee(vertex, pt, eta, phi, charge, field=0.0)
    x, y, z = vertex.T
    along = x * np.cos(phi) + y * np.sin(phi)
    np.testing.assert_allclose(straight[1], z - along * np.sinh(eta))
    np.testing.assert_allclose(straight[2], x * np.sin(phi) - y * np.cos(phi))
    np.testing.assert_allclose(at, phi, atol=1e-6)
    np.testing.assert_allclose(z0, straight[1], atol=1e-6)
    np.testing.assert_allclose(d0, straight[2], atol=1e-6)


def test_a_positive_particle_that_starts_along_x_is_bent_to_negative_y():
    quarter = 100 / (0.00299792458 * 3.8) / 100  # R of 1 GeV
    vertex = np.array([[quarter, -quarter, 0.0]])  # a quarter of its circle later
    at, _, d0 = library.perigee(
        vertex, np.ones(1), np.zeros(1), np.array([-np.pi / 2]), np.ones(1, np.int8)
    )
    assert at[0] == pytest.approx(0, abs=1e-12)
    assert d0[0] == pytest.approx(0, abs=1e-9)


# --- files ----------------------------------------------------------------------------------


def test_what_is_written_is_read_back_within_half_a_step(tmp_path):
    chunk = some_chunk(np.random.default_rng(4))
    library.write("hbb", [chunk], tmp_path, seed=1, version="0")
    lib = library.load(tmp_path)
    np.testing.assert_array_equal(lib.counts, chunk.counts)
    np.testing.assert_array_equal(lib.charge, chunk.charge)
    np.testing.assert_array_equal(lib.kind, chunk.kind)
    np.testing.assert_allclose(lib.pt, chunk.pt, rtol=1.3e-4)
    np.testing.assert_allclose(lib.eta, chunk.eta, atol=4.1e-5)
    near = ~np.any(chunk.vertex != 0, axis=1)
    np.testing.assert_allclose(lib.phi[near], chunk.phi[near], atol=5e-5)
    phi, z0, d0 = library.perigee(chunk.vertex, chunk.pt, chunk.eta, chunk.phi, chunk.charge)
    np.testing.assert_allclose(np.cos(lib.phi - phi), 1, atol=1e-7)
    np.testing.assert_allclose(lib.d0, d0, atol=1e-3)
    # An eta step of 8e-5 over a few cm of arc at eta 2.6 is the worst of the codes.
    np.testing.assert_allclose(lib.z0, z0, atol=4e-3)
    np.testing.assert_allclose(lib.r_prod, np.hypot(*chunk.vertex[:, :2].T), atol=1.1e-4)


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        chunk = some_chunk(np.random.default_rng(4))
        library.write("hbb", [chunk], tmp_path / name, seed=1, version="0")
    for file in ("hbb.npz", "hbb.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_chunk_without_particles_is_a_library_too(tmp_path):
    empty = some_chunk(np.random.default_rng(0), interactions=0)._replace(counts=np.zeros(7, int))
    library.write("hbb", [empty], tmp_path, seed=1, version="0")
    lib = library.load(tmp_path)
    assert len(lib.interactions("hbb")) == 7
    assert len(lib.pt) == 0


def test_damage_and_wrong_files_are_named(tmp_path):
    chunk = some_chunk(np.random.default_rng(4))
    with pytest.raises(ConfigError, match="holds no particle library"):
        library.load(tmp_path)

    def fresh():
        shutil.rmtree(tmp_path)
        library.write("hbb", [chunk], tmp_path, seed=1, version="0")
        return tmp_path / "hbb.npz", tmp_path / "hbb.json"

    data, sidecar = fresh()
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(bytes(raw))
    with pytest.raises(DataError, match=r"hbb.npz is damaged: its SHA-256 is .*copy it again"):
        library.load(tmp_path)

    data, sidecar = fresh()
    data.unlink()
    with pytest.raises(DataError, match=r"hbb.npz is missing; its description is there"):
        library.load(tmp_path)

    data, sidecar = fresh()
    sidecar.write_text(sidecar.read_text()[:40])
    with pytest.raises(DataError, match=r"hbb.json is not the description .* cut or edited"):
        library.load(tmp_path)

    def edit(**change):
        _, sidecar = fresh()
        sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **change}))

    edit(format=2)
    with pytest.raises(DataError, match="has format 2, this stillfit reads format 1; install"):
        library.load(tmp_path)
    edit(file="../hbb.npz")
    with pytest.raises(DataError, match=r"must lie beside its description, got '../hbb.npz'"):
        library.load(tmp_path)
    edit(interactions=5)
    with pytest.raises(DataError, match="does not hold the 5 interactions"):
        library.load(tmp_path)


def test_unknown_processes_and_splits_get_a_hint(shipped):
    with pytest.raises(ConfigError, match="has no process 'tbar'; did you mean 'ttbar'"):
        shipped.interactions("tbar")
    with pytest.raises(ConfigError, match="there is no split 'tests'; did you mean 'test'"):
        shipped.interactions("ttbar", "tests")


# --- generation -----------------------------------------------------------------------------


def test_without_the_generator_the_error_says_what_to_install(tmp_path, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'stillfit\[pythia\]'"):
        library.generate("ttbar", 10, seed=1, out=tmp_path)


def test_wrong_arguments_of_generate_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no process 'ttbra'; did you mean 'ttbar'"):
        library.generate("ttbra", 10, seed=1, out=tmp_path)
    with pytest.raises(ConfigError, match="must be at least 1, got 0 and 1"):
        library.generate("ttbar", 0, seed=1, out=tmp_path)


def test_a_wrong_process_is_refused_before_any_is_generated(tmp_path):
    with pytest.raises(ConfigError, match="there is no process 'zmumi'; did you mean 'zmumu'"):
        library.generate_all(tmp_path / "out", interactions={"hbb": 10, "zmumi": 10})
    assert not (tmp_path / "out").exists()


def test_chunk_seeds_are_legal_and_differ():
    seeds = {library.chunk_seed(s, p, c) for s in (0, 1) for p in ("a", "b") for c in range(50)}
    assert len(seeds) == 200
    assert all(1 <= seed <= 900_000_000 for seed in seeds)


def test_the_number_of_workers_changes_nothing_and_longer_starts_like_shorter(
    tmp_path, monkeypatch
):
    pytest.importorskip("pythia8mc")
    short = Process(library.PROCESSES["hbb"].settings, 20, "short chunks")
    monkeypatch.setattr(library, "PROCESSES", {"hbb": short})
    calls = []
    for name, number, workers in (("one", 50, 1), ("two", 50, 2), ("less", 30, 1)):
        library.generate(
            "hbb",
            number,
            seed=3,
            out=tmp_path / name,
            workers=workers,
            progress=lambda done, of: calls.append((done, of)),
        )
    assert calls == [(20, 50), (40, 50), (50, 50)] * 2 + [(20, 30), (30, 30)]
    one, two = ((tmp_path / name / "hbb.npz").read_bytes() for name in ("one", "two"))
    assert one == two
    long, less = library.load(tmp_path / "one"), library.load(tmp_path / "less")
    np.testing.assert_array_equal(long.offsets[:31], less.offsets)
    np.testing.assert_array_equal(long.pt[: len(less.pt)], less.pt)


def test_the_shipped_files_can_be_made_again(shipped):
    """The first interactions of a shipped process come out of its recorded seed and settings."""
    pytest.importorskip("pythia8mc")
    meta = shipped.meta["hbb"]
    if importlib.metadata.version("pythia8mc") != meta["generator"].split()[1]:
        pytest.skip("another version of the generator")
    assert tuple(meta["settings"]) == library.PROCESSES["hbb"].settings
    chunk = library.run_chunk("hbb", library.chunk_seed(meta["seed"], "hbb", 0), 20)
    first = shipped.offsets[shipped.bounds[shipped.processes.index("hbb")]]
    np.testing.assert_allclose(shipped.pt[first : first + len(chunk.pt)], chunk.pt, rtol=1.3e-4)
