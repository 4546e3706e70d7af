"""L1TrackNtuple files: the simulation there and back, and files as others make them."""

import errno
import os
import sys

import awkward as ak
import numpy as np
import pytest
import uproot

from stillfit.core.arrays import Ragged, concat
from stillfit.core.errors import ConfigError, DataError, MissingExtraError
from stillfit.core.events import Block, Examples, Labels, Notice
from stillfit.core.tables import build
from stillfit.l1t import ntuple, quality
from stillfit.l1t.composition import compose
from stillfit.l1t.conditions import Conditions
from stillfit.l1t.detector import simulate
from stillfit.l1t.library import load
from stillfit.l1t.ntuple import COLUMNS, Ntuple
from stillfit.l1t.ntuple_writing import NtupleWriter, Written, write_ntuple
from stillfit.l1t.tracks import INPUTS
from stillfit.streams.contract import InMemory
from stillfit.streams.guard import Guarded
from stillfit.streams.labels import Labelling

EVENTS = 60


@pytest.fixture(scope="module")
def simulated():
    """Blocks of simulated events at low pile-up, their labels, and a notice between conditions."""
    library, events, rng = load(), [], np.random.default_rng(3)
    for number, name in enumerate(["nominal", "nominal", "quality"]):
        word = "inverted" if name == "quality" else "nominal"
        particles = compose(
            library, n=20, pileup=20.0, z_beam=0.0, sigma_z=5.0, processes={"ttbar": 1.0},
            rng=rng, split="test",
        )  # fmt: skip
        tracks = simulate(particles, Conditions(quality_word=word), rng)
        ids = np.arange(20 * number, 20 * number + 20, dtype=np.int64)
        time = 100.0 * number
        if number == 2:
            events.append(Notice("inter-fill", time))
        events.append(Block(ids, tracks.to_inputs(), time, {"condition": name}))
        events.append(Labels(ids, tracks.to_targets(), time))
    return events


@pytest.fixture(scope="module")
def written(simulated, tmp_path_factory):
    path = tmp_path_factory.mktemp("n") / "sim.root"
    assert write_ntuple(path, iter(simulated)) == Written(EVENTS, 0)
    return path


def by_hand(path, n=10, drop=(), tree="L1TrackNtuple/eventTree", vector_pv=True, seed=0, **more):
    """A file as the CMS software makes them: no ids, sums of chi2, `trk_d0` of a fit without d0."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(8, n)
    total = int(counts.sum())
    nstub = rng.integers(4, 7, total)
    tracks = {
        "pt": rng.gamma(2, 3, total).astype(np.float32),
        "eta": rng.uniform(-2.4, 2.4, total).astype(np.float32),
        "phi": rng.uniform(-3.1, 3.1, total).astype(np.float32),
        "z0": rng.normal(0, 5, total).astype(np.float32),
        "d0": np.full(total, -999, np.float32),
        "chi2rphi": (nstub - 2).astype(np.float32) * 3,
        "chi2rz": (nstub - 2).astype(np.float32) * 2,
        "bendchi2": rng.random(total).astype(np.float32),
        "nstub": nstub.astype(np.int32),
        "hitpattern": rng.integers(0, 128, total).astype(np.int32),
        "lhits": rng.choice([111111, 100011, 0], total).astype(np.int32),
        "dhits": rng.choice([0, 11, 10000], total).astype(np.int32),
        "MVA1": rng.random(total).astype(np.float32),
        "fake": rng.integers(0, 3, total).astype(np.int32),
        **more,
    }
    pv = rng.normal(0, 5, n).astype(np.float32)
    rows = {
        "trk": ak.unflatten(ak.zip({k: v for k, v in tracks.items() if k not in drop}), counts),
        "pv_MC": ak.unflatten(pv, np.ones(n, int)) if vector_pv else pv,
    }
    rows = {name: values for name, values in rows.items() if name not in drop}
    with uproot.recreate(path) as file:
        types = {k: getattr(v, "dtype", None) or v.type.content for k, v in rows.items()}
        file.mktree(tree, types).extend(rows)
    return tracks, counts, pv


def whole(path, **knobs):
    """All blocks and all labels of a file, joined."""
    events = list(Ntuple(path=path, **knobs).events())
    blocks = [event for event in events if isinstance(event, Block)]
    labels = [event for event in events if isinstance(event, Labels)]
    return concat([b.inputs for b in blocks]), concat([part.targets for part in labels])


# ---- round trip


def test_the_columns_are_those_of_the_simulation():
    assert COLUMNS == INPUTS


def test_the_simulation_comes_back_identical(simulated, written):
    back = list(Ntuple(path=written, block=20).events())
    kept = [event for event in simulated if not isinstance(event, Notice)]
    assert len(back) == len(kept)
    for one, other in zip(back, kept, strict=True):
        assert type(one) is type(other) and one.time == other.time
        np.testing.assert_array_equal(one.ids, other.ids)
        arrays, expected = (
            (one.inputs, other.inputs) if isinstance(one, Block) else (one.targets, other.targets)
        )
        assert list(arrays) == list(expected)
        for name, column in arrays.items():
            wanted = expected[name]
            if isinstance(column, Ragged):
                np.testing.assert_array_equal(column.offsets, wanted.offsets)
                column, wanted = column.values, wanted.values
            assert column.dtype == wanted.dtype, name
            np.testing.assert_array_equal(column, wanted, err_msg=name)
        if isinstance(one, Block):
            assert one.conditions == other.conditions


@pytest.mark.parametrize(("block", "read"), [(1, 30), (7, 1), (7, 30), (20, 4000), (1000, 30)])
def test_blocks_of_any_size_hold_the_same_events(written, simulated, block, read, monkeypatch):
    monkeypatch.setattr(ntuple, "_READ", read)
    blocks = [e for e in Ntuple(path=written, block=block).events() if isinstance(e, Block)]
    assert max(map(len, blocks)) <= block
    # A block ends where the condition does.
    assert [b.condition for b in blocks] == ["nominal"] * -(-40 // block) + ["quality"] * (
        -(-20 // block)
    )
    found = concat([b.inputs for b in blocks])
    wanted = concat([e.inputs for e in simulated if isinstance(e, Block)])
    for name in COLUMNS:
        np.testing.assert_array_equal(found[name].values, wanted[name].values)


@pytest.mark.parametrize("read", [8, 4000])
def test_the_stream_starts_after_any_event(written, read, monkeypatch):
    monkeypatch.setattr(ntuple, "_READ", read)
    stream = Ntuple(path=written, block=9)
    events = list(stream.events())
    for start in (0, 1, 2, 3, 8, 9, 10, len(events) - 1, len(events), len(events) + 1):
        rest = list(stream.events(start))
        assert len(rest) == max(len(events) - start, 0)
        for one, other in zip(rest, events[start:], strict=True):
            assert type(one) is type(other)
            np.testing.assert_array_equal(one.ids, other.ids)
    with pytest.raises(ConfigError, match="cannot start at event -2"):
        next(stream.events(-2))


def test_late_and_partial_labels_are_written_with_their_events(simulated, tmp_path):
    late = Labelling(delay=150.0, fraction=0.5).on(InMemory(simulated))
    written = write_ntuple(tmp_path / "late.root", late)
    assert written.events + written.unlabelled == EVENTS
    assert 15 < written.events < 45
    ids = [e.ids for e in Ntuple(path=tmp_path / "late.root").events() if isinstance(e, Block)]
    np.testing.assert_array_equal(
        np.concatenate(ids), np.flatnonzero(Labelling(fraction=0.5).kept(np.arange(EVENTS)))
    )


def test_truth_of_fakes_is_written_where_it_is_known(simulated, tmp_path):
    block, labels = simulated[0], simulated[1]
    is_pv = labels.targets["is_pv"]
    is_fake = Ragged(((np.arange(len(is_pv.values)) % 3 == 0) & (is_pv.values == 0)), is_pv.offsets)
    for name, more in (("without", {}), ("with", {"is_fake": is_fake})):
        examples = Examples(
            block.ids,
            block.inputs,
            {**labels.targets, **more},
            np.zeros(20),
            np.full(20, "nominal"),
        )
        with NtupleWriter(tmp_path / f"{name}.root") as writer:
            writer.write(examples)
            writer.write(Examples.empty())
        with uproot.open(tmp_path / f"{name}.root") as file:
            fake = ak.flatten(file["L1TrackNtuple/eventTree/trk_fake"].array()).to_numpy()
        expected = np.where(is_pv.values > 0, 1, 2)
        if more:
            expected[is_fake.values] = 0
        np.testing.assert_array_equal(fake, expected)


def test_the_written_branches_are_those_of_cms(written):
    with uproot.open(written) as file:
        tree = file["L1TrackNtuple/eventTree"]
        arrays = tree.arrays(library="ak")
        assert {"trk_pt", "trk_MVA1", "trk_fake", "pv_MC"} <= set(tree.keys())
        dof = ak.flatten(arrays["trk_nstub"]).to_numpy() - 2
        for name in ("chi2rphi", "chi2rz"):
            total = ak.flatten(arrays[f"trk_{name}"]).to_numpy()
            each = ak.flatten(arrays[f"trk_{name}_dof"]).to_numpy()
            np.testing.assert_allclose(total, each * dof, rtol=1e-6)
        assert ak.all(ak.num(arrays["pv_MC"]) == 1)
        hits = ak.flatten(arrays["trk_lhits"]).to_numpy(), ak.flatten(arrays["trk_dhits"])
        # As many stubs as digits that are set.
        digits = [sum(map(int, str(a))) + sum(map(int, str(b))) for a, b in zip(*hits, strict=True)]
        layers = whole(written)[0]["layers"].values
        assert digits == [int(bits).bit_count() for bits in layers]


# ---- files of others


@pytest.mark.parametrize("vector_pv", [True, False])
def test_a_file_of_the_cms_software_is_read(tmp_path, vector_pv):
    tracks, counts, pv = by_hand(tmp_path / "cms.root", vector_pv=vector_pv)
    inputs, targets = whole(tmp_path / "cms.root")
    assert list(inputs) == list(COLUMNS)
    for name in ("pt", "eta", "phi", "z0", "bendchi2", "nstub", "hitpattern"):
        np.testing.assert_array_equal(inputs[name].values, tracks[name])
        np.testing.assert_array_equal(inputs[name].counts, counts)
    np.testing.assert_array_equal(inputs["mva"].values, tracks["MVA1"])
    np.testing.assert_array_equal(inputs["quality"].values, quality.index(tracks["MVA1"]))
    np.testing.assert_array_equal(inputs["d0"].values, 0.0)  # the fit had none
    np.testing.assert_allclose(inputs["chi2rphi"].values, 3.0, rtol=1e-6)
    np.testing.assert_allclose(inputs["chi2rz"].values, 2.0, rtol=1e-6)
    np.testing.assert_array_equal(targets["z0"], pv)
    np.testing.assert_array_equal(targets["is_pv"].values, tracks["fake"] == 1)
    layers = [
        {111111: 0b111111, 100011: 0b100011, 0: 0}[low] | {0: 0, 11: 3 << 6, 10000: 1 << 10}[disk]
        for low, disk in zip(tracks["lhits"], tracks["dhits"], strict=True)
    ]
    assert inputs["layers"].values.tolist() == layers


def test_chi2_may_be_per_degree_of_freedom_already(tmp_path):
    tracks, _, _ = by_hand(tmp_path / "old.root")
    inputs, _ = whole(tmp_path / "old.root", chi2_per_dof=True)
    np.testing.assert_array_equal(inputs["chi2rphi"].values, tracks["chi2rphi"])


def test_branches_that_may_be_absent(tmp_path):
    path = tmp_path / "few.root"
    by_hand(path, drop=("d0", "lhits", "dhits", "MVA1"))
    inputs, _ = whole(path)
    assert not inputs["d0"].values.any() and not inputs["layers"].values.any()

    class Read:
        def __getattr__(self, name):
            return inputs[name].values

    np.testing.assert_array_equal(inputs["mva"].values, quality.probability(Read()))


def test_real_data_has_no_labels(tmp_path):
    by_hand(tmp_path / "data.root", drop=("fake", "pv_MC"))
    events = list(Ntuple(path=tmp_path / "data.root", block=4).events())
    assert [len(event) for event in events] == [4, 4, 2]
    assert all(isinstance(event, Block) for event in events)
    assert len(list(Ntuple(path=tmp_path / "data.root", block=4).events(2))) == 1


def test_an_event_without_a_vertex_gets_no_label(tmp_path):
    path = tmp_path / "some.root"
    counts = np.array([1, 2, 1])
    tracks = {f: np.ones(4, np.float32) for f in ("pt", "eta", "phi", "z0", "bendchi2")}
    tracks |= {"chi2rphi": np.ones(4, np.float32), "chi2rz": np.ones(4, np.float32)}
    tracks |= {f: np.full(4, 4, np.int32) for f in ("nstub", "hitpattern", "fake")}
    rows = {
        "trk": ak.unflatten(ak.zip(tracks), counts),
        "pv_MC": ak.unflatten(np.array([1.0, 2.0, 3.0], np.float32), np.array([1, 0, 2])),
    }
    with uproot.recreate(path) as file:
        file.mktree("L1TrackNtuple/eventTree", {k: v.type.content for k, v in rows.items()}).extend(
            rows
        )
    block, labels = Ntuple(path=path).events()
    assert len(block) == 3
    assert labels.ids.tolist() == [0, 2]
    assert labels.targets["z0"].tolist() == [1.0, 2.0]  # the first of several vertices
    assert len(labels.targets["is_pv"]) == 2


def test_several_files_are_numbered_through_and_have_their_conditions(tmp_path):
    for name, n in (("b", 5), ("a", 7), ("c", 3)):
        by_hand(tmp_path / f"{name}.root", n=n, seed=n)
    stream = Ntuple(
        path=tmp_path / "*.root", conditions=("x", "y", "x"), block=4, begin=100.0, interval=0.5
    )
    blocks = [event for event in stream.events() if isinstance(event, Block)]
    found = [(b.condition, b.ids.tolist(), b.time) for b in blocks]
    assert found == [
        ("x", [0, 1, 2, 3], 101.5),
        ("x", [4, 5, 6], 103.0),
        ("y", [7, 8, 9, 10], 105.0),
        ("y", [11], 105.5),
        ("x", [12, 13, 14], 107.0),
    ]
    events = list(stream.events())
    for start in (1, 4, 5, 9, 10):
        assert [e.ids[0] for e in stream.events(start)] == [e.ids[0] for e in events[start:]]


def test_the_tree_is_found_by_its_tracks(tmp_path):
    path = tmp_path / "odd.root"
    by_hand(path, tree="mine/tracks")
    assert len(whole(path)[0]["pt"]) == 10
    with uproot.update(path) as file:
        file.mktree("other", {"x": np.dtype("f8")})
    assert len(whole(path, tree="mine/tracks")[0]["pt"]) == 10
    with pytest.raises(ConfigError, match=r"has no tree 'mine/track'; did you mean 'mine/tracks'"):
        whole(path, tree="mine/track")


def test_an_empty_tree_is_an_empty_stream(tmp_path):
    by_hand(tmp_path / "none.root", n=0)
    assert list(Ntuple(path=tmp_path / "none.root").events()) == []


def test_tracks_that_are_not_finite_are_set_aside_by_the_guard(tmp_path):
    _, counts, _ = by_hand(tmp_path / "x.root")
    pt = np.ones(int(counts.sum()), np.float32)
    pt[0] = np.nan
    by_hand(tmp_path / "nan.root", pt=pt)
    guarded = Guarded(Ntuple(path=tmp_path / "nan.root"))
    assert [len(event) for event in guarded.events()] == [9, 9]
    assert guarded.set_aside.counts == {"inputs not finite": 1, "label of an unknown event": 1}


# ---- errors


def test_required_branches_are_named(tmp_path):
    by_hand(tmp_path / "x.root", drop=("bendchi2", "chi2rz"))
    with pytest.raises(
        ConfigError,
        match=r"the tree 'L1TrackNtuple/eventTree' of .* lacks trk_bendchi2, trk_chi2rz; did you",
    ):
        whole(tmp_path / "x.root")


def test_trees_without_tracks_are_named(tmp_path):
    with uproot.recreate(tmp_path / "x.root") as file:
        for name in ("a/one", "two"):
            file.mktree(name, {"x": np.dtype("f8")}).extend({"x": np.zeros(3)})
    with pytest.raises(ConfigError, match=r"no tree with the branch 'trk_pt'; its trees are a/one"):
        whole(tmp_path / "x.root")


def test_two_trees_with_tracks_must_be_told_apart(tmp_path):
    with uproot.recreate(tmp_path / "x.root") as file:
        for name in ("a", "b"):
            file.mktree(name, {"trk_pt": "var * float64"})
    with pytest.raises(ConfigError, match=r"several trees with tracks: a, b; name one as `tree`"):
        whole(tmp_path / "x.root")


def test_branches_that_disagree_are_an_error(tmp_path):
    path = tmp_path / "x.root"
    tracks, counts, _ = by_hand(path)
    rows = {f"trk_{k}": ak.unflatten(v, counts) for k, v in tracks.items()}
    rows["trk_eta"] = rows["trk_eta"][:, :-1] if counts.min() else rows["trk_eta"][:, ::2]
    with uproot.recreate(path) as file:
        file.mktree("t", {name: values.type.content for name, values in rows.items()}).extend(rows)
    with pytest.raises(DataError, match=r"trk_eta of .* does not have one number for each track"):
        whole(path)


def test_numbers_that_do_not_fit_are_an_error(tmp_path):
    _, counts, _ = by_hand(tmp_path / "x.root")
    for bad in (-1, 300):
        nstub = np.full(int(counts.sum()), 5, np.int32)
        nstub[3] = bad
        by_hand(tmp_path / "y.root", nstub=nstub)
        with pytest.raises(DataError, match=rf"trk_nstub of .* holds {bad}; it must be between 0"):
            whole(tmp_path / "y.root")


def test_files_that_are_cut_or_no_root_files_are_an_error(written, tmp_path):
    data = written.read_bytes()
    for name, part in (("cut", data[: len(data) // 2]), ("text", b"not a ROOT file"), ("no", b"")):
        path = tmp_path / f"{name}.root"
        path.write_bytes(part)
        with pytest.raises(DataError, match=r"cannot be read as a ROOT file .*was it copied whole"):
            whole(path)


def test_paths_that_lead_nowhere_are_named(tmp_path):
    with pytest.raises(
        ConfigError, match=r"there is no file .*x.root; give the path of a ROOT fil"
    ):
        whole(tmp_path / "x.root")
    by_hand(tmp_path / "a.root")
    with pytest.raises(ConfigError, match=r"conditions names 2 conditions for 1 files; name one"):
        whole(tmp_path / "*.root", conditions=("a", "b"))


def test_an_existing_file_is_never_overwritten(written, simulated):
    before = written.read_bytes()
    with pytest.raises(ConfigError, match=r"sim.root is there already; choose another name"):
        write_ntuple(written, iter(simulated))
    assert written.read_bytes() == before


def test_a_file_that_was_not_finished_does_not_appear(simulated, tmp_path):
    with pytest.raises(ZeroDivisionError), NtupleWriter(tmp_path / "x.root") as writer:
        block, labels = simulated[:2]
        writer.write(
            Examples(block.ids, block.inputs, labels.targets, np.zeros(20), np.full(20, "nominal"))
        )
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_streams_without_tracks_are_refused(tmp_path):
    ids = np.arange(3, dtype=np.int64)
    targets = {"z0": np.zeros(3), "is_pv": np.zeros(3)}
    with pytest.raises(ConfigError, match=r"needs the track columns .*, which the stream does not"):
        write_ntuple(
            tmp_path / "x.root",
            iter([Block(ids, {"pt": np.zeros(3)}, 0.0), Labels(ids, targets, 0.0)]),
        )
    with pytest.raises(DataError, match=r"the labels lack is_pv; they hold z0"):
        write_ntuple(
            tmp_path / "y.root",
            iter([Block(ids, {"pt": np.zeros(3)}, 0.0), Labels(ids, {"z0": np.zeros(3)}, 0.0)]),
        )
    dense = {name: np.zeros(3) for name in COLUMNS}
    with pytest.raises(ConfigError, match=r"column 'pt' must hold a number for each track, not e"):
        write_ntuple(tmp_path / "z.root", iter([Block(ids, dense, 0.0), Labels(ids, targets, 0.0)]))


def test_without_the_extra_the_remedy_is_named(monkeypatch, tmp_path):
    (tmp_path / "x.root").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "uproot", None)
    for attempt in (
        lambda: list(Ntuple(path=tmp_path / "x.root").events()),
        lambda: NtupleWriter(tmp_path / "y.root"),
    ):
        with pytest.raises(MissingExtraError, match=r"run: pip install 'stillfit\[hep\]'"):
            attempt()


def test_the_knobs_come_from_a_run_file(tmp_path):
    table = {"path": "x-*.root", "conditions": ["a", "b"], "interval": 1}
    made = build(Ntuple, table, "[stream]")
    assert made.conditions == ("a", "b") and made.interval == 1.0
    with pytest.raises(ConfigError, match=r"block = 0 must be at least 1 event"):
        build(Ntuple, {**table, "block": 0}, "[stream]")


def test_a_full_disk_is_named_and_leaves_no_half_file(simulated, tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"x.root could not be written \(No space left on device\)"):
        write_ntuple(tmp_path / "x.root", iter(simulated))
    assert not (tmp_path / "x.root").exists()


def test_conditions_without_names_are_an_error(simulated, tmp_path, monkeypatch):
    monkeypatch.setattr(NtupleWriter, "close", _without_names)
    write_ntuple(tmp_path / "x.root", iter(simulated))
    with pytest.raises(DataError, match=r"numbers its conditions beyond the 1 it names"):
        whole(tmp_path / "x.root")


def _without_names(writer):
    writer._file["stillfit_conditions"] = '["nominal"]'
    writer._file.close()
    writer._temporary.replace(writer.path)
