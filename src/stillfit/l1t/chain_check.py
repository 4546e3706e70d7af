"""The vertex chain's RTL against its whole numbers and the fake-quantised network, bit for bit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from stillfit.core.arrays import Array, Arrays, Ragged, concat
from stillfit.core.errors import ConfigError, DataError
from stillfit.core.values import Equality
from stillfit.firmware.checking import compared
from stillfit.firmware.packing import Words, unpacked
from stillfit.firmware.simulation import Simulator
from stillfit.l1t.chain_rtl import SPACING, ChainRtl
from stillfit.l1t.conditions import nominal
from stillfit.l1t.fixed import Z_STEP, FixedE2E
from stillfit.l1t.fixed_chain import Answer, VertexChain, vertex_chain
from stillfit.l1t.fixed_words import WORD_COLUMNS, words_of
from stillfit.l1t.library import Library
from stillfit.l1t.recipe import vertex_examples
from stillfit.l1t.trackword import from_sector, to_sector
from stillfit.models.fixed.formats import Codes
from stillfit.models.tensors import RaggedTensor, tensors

DRAIN = 100  # clocks in which flags still come after the last vertex, beside those of its words


@dataclass(frozen=True, eq=False, kw_only=True)
class ChainVectors:
    """Events as track words (items, 12) with the sector of each, and what is said of them.

    Event i owns the tracks from `offsets[i]` to `offsets[i + 1]`. `whole`: the chain's answer in
    whole numbers; `z0`, `score` (n,) and `flags` (items,): that of the PyTorch network, in the
    same units.
    """

    words: NDArray[np.uint8]
    sector: NDArray[np.int8]
    offsets: NDArray[np.int64]
    whole: Answer
    z0: Codes
    score: Codes
    flags: NDArray[np.bool_]

    @property
    def events(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def digest(self) -> str:
        """SHA-256 of words, sectors and offsets."""
        found = hashlib.sha256()
        for array in (self.words, self.sector.astype(np.int8), self.offsets.astype(np.int64)):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def first(self, events: int) -> ChainVectors:
        """The first events."""
        items = int(self.offsets[min(events, self.events)])
        whole = self.whole
        return ChainVectors(
            words=self.words[:items],
            sector=self.sector[:items],
            offsets=self.offsets[: events + 1],
            whole=Answer(
                bins=whole.bins[:events],
                z0=whole.z0[:events],
                score=whole.score[:events],
                weights=whole.weights[:items],
                logits=whole.logits[:items],
                flags=whole.flags[:items],
            ),
            z0=self.z0[:events],
            score=self.score[:events],
            flags=self.flags[:items],
        )


def chain_events(n: int, sectors: tuple[int, ...], library: Library, seed: int) -> Arrays:
    """Track columns of `n` events for links of `sectors`: half of them simulated, half drawn.

    Simulated ones have nominal pile-up. Drawn ones reach all over the track word: every field,
    its ends, events without a track, crowded ones, bins that saturate, bins that tie.
    """
    rng = np.random.default_rng(seed)
    simulated = vertex_examples(n - n // 2, nominal(), library=library, seed=seed).inputs
    drawn = _drawn(n // 2, sectors, rng)
    return concat([_only(simulated, sectors), drawn])


def record_chain(network: FixedE2E, inputs: Arrays) -> ChainVectors:
    """What whole numbers and PyTorch say of events."""
    chain = vertex_chain(network)
    words, sector, offsets = words_of(inputs)
    tracks = tensors(network.prepare(inputs))["tracks"]
    assert isinstance(tracks, RaggedTensor)
    with torch.no_grad():
        found = network.find(tracks)
    return ChainVectors(
        words=words,
        sector=sector,
        offsets=offsets,
        whole=chain.find_words(words, sector, offsets),
        z0=np.rint(found.z0.double().numpy() / Z_STEP).astype(np.int64),
        score=np.ldexp(found.score.double().numpy(), chain.score_fraction).astype(np.int64),
        flags=(found.association >= 0.5).numpy(),
    )


def _only(inputs: Arrays, sectors: tuple[int, ...]) -> Arrays:
    """The tracks of some sectors."""
    first = inputs[WORD_COLUMNS[0]]
    phi = inputs["phi"]
    assert isinstance(first, Ragged) and isinstance(phi, Ragged)
    kept = np.isin(to_sector(phi.values)[0], sectors)
    event = np.repeat(np.arange(len(first.counts)), first.counts)[kept]
    counts = np.bincount(event, minlength=len(first.counts))
    found: dict[str, Ragged] = {}
    for name in WORD_COLUMNS:
        column = inputs[name]
        assert isinstance(column, Ragged)
        found[name] = Ragged.from_counts(column.values[kept], counts)
    return found


def _drawn(n: int, sectors: tuple[int, ...], rng: np.random.Generator) -> Arrays:
    most = 6 * len(sectors)
    counts = rng.integers(0, np.resize([most, 3, 1, 2 * most], n) + 1)
    items = int(counts.sum())
    event = np.repeat(np.arange(n), counts)
    reach = np.resize([20.5, 0.5, 0.08], n)[event]  # cm: all bins, a few, one or two
    centre = rng.uniform(-20.5, 20.5, n)[event] * (reach < 20)
    own = rng.choice(np.array(sectors), items)
    columns: dict[str, Array] = {
        "pt": np.exp2(rng.uniform(1, 10, items)),
        "eta": rng.uniform(-2.7, 2.7, items),
        "phi": from_sector(own, rng.uniform(-0.34, 0.34, items)),
        "z0": np.clip(centre + reach * rng.uniform(-1, 1, items), -20.5, 20.5),
        "hitpattern": rng.integers(0, 128, items).astype(np.float32),
        "quality": rng.integers(0, 8, items).astype(np.float32),
    }
    return {
        name: Ragged.from_counts(column.astype(np.float32), counts)
        for name, column in columns.items()
    }


@dataclass(frozen=True, eq=False, kw_only=True)
class Stream:
    """Events as rows of the chain's inputs, a row a clock, and the clock and link of each track."""

    rows: dict[str, Words]
    clock: NDArray[np.int64]
    link: NDArray[np.int64]

    @property
    def order(self) -> NDArray[np.int64]:
        """The tracks in the order in which their flags come."""
        return np.lexsort((self.link, self.clock))


def stream(vectors: ChainVectors, rtl: ChainRtl, chain: VertexChain | None = None) -> Stream:
    """Events spaced as the chain allows; a track goes to the links of its sector in turn.

    `chain`: whose numbers are loaded first into a reloadable design.
    """
    images = {} if chain is None else rtl.images(chain)
    start = 1 + sum(len(words) + 1 for words in images.values())
    items = len(vectors.words)
    clock, link = np.empty(items, np.int64), np.empty(items, np.int64)
    own = {s: [n for n, at in enumerate(rtl.sectors) if at == s] for s in set(rtl.sectors)}
    strange = sorted(set(vectors.sector.tolist()) - set(own))
    if strange:
        raise ConfigError(f"no link brings tracks of the sectors {strange}; name them in sectors")
    ends = []
    for event in range(vectors.events):
        seen: dict[int, int] = {}
        first, stop = int(vectors.offsets[event]), int(vectors.offsets[event + 1])
        for track in range(first, stop):
            sector = int(vectors.sector[track])
            mine = own[sector]
            n = seen.get(sector, 0)
            seen[sector] = n + 1
            clock[track], link[track] = start + n // len(mine), mine[n % len(mine)]
        used = int(clock[first:stop].max()) if stop > first else start
        ends.append(max(used, start + SPACING[rtl.form] - 1))
        start = ends[-1] + 1
    longest = max((int(end) for end in np.diff([1, *ends])), default=1)
    clocks = start + rtl.clocks + longest + DRAIN
    fed = np.zeros((clocks, len(rtl.sectors), 3), np.uint32)
    fed[clock, link] = np.ascontiguousarray(vectors.words).view(">u4").astype(np.uint32)[:, ::-1]
    single = {
        name: np.zeros((clocks, 1), np.uint32)
        for name in ("last", "rst", *(("load_word", *images) if images else ()))
    }
    single["last"][ends] = 1
    single["rst"][0] = 1
    at = 1
    for port, words in images.items():
        single[port][at : at + len(words)] = 1
        single["load_word"][at : at + len(words), 0] = words
        at += len(words) + 1
    return Stream(rows={"words": fed.reshape(clocks, -1), **single}, clock=clock, link=link)


def check_chain(
    rtl: ChainRtl,
    built: Simulator,
    vectors: ChainVectors,
    chain: VertexChain | None = None,
) -> dict[str, Equality]:
    """Bin, position and score of each event and the flag of each track, by block.

    `chain`: whose numbers are loaded into a reloadable design. `DataError` where the chain answers
    to more or fewer events and tracks than it was given.
    """
    given = stream(vectors, rtl, chain)
    out = built.run(given.rows)
    if out["overrun"].any():
        raise DataError("the chain says that events came too close; space them as SPACING says")
    at = out["vertex"][:, 0] == 1
    rounds = np.flatnonzero(out["flagged"][:, 0])
    lanes = np.arange(len(rtl.sectors))
    tracks = (out["tracks"][rounds] >> lanes) & 1
    flags = (out["flags"][rounds] >> lanes) & 1
    got = flags[tracks == 1].astype(np.int64)
    if int(at.sum()) != vectors.events or len(got) != len(vectors.words):
        raise DataError(
            f"the chain answered {int(at.sum())} vertices and {len(got)} flags to {vectors.events} "
            f"events and {len(vectors.words)} tracks; its flow control is wrong, report it"
        )
    flagged = np.empty_like(got)
    flagged[given.order] = got
    whole = vectors.whole
    z0 = unpacked(out["z0"][at], [rtl.outputs["z0"]], [True])[:, 0]
    score = unpacked(out["score"][at], [rtl.outputs["score"]], [False])[:, 0]
    answers: dict[str, tuple[Codes, ...]] = {
        "winning bin": (out["best"][at][:, 0].astype(np.int64), whole.bins),
        "position": (z0, whole.z0, vectors.z0),
        "score": (score, whole.score, vectors.score),
        "association flag": (flagged, whole.flags.astype(np.int64), vectors.flags.astype(np.int64)),
    }
    names = ("RTL", "whole numbers", "fake-quantised network")
    return {
        block: compared(
            block,
            {n: codes.reshape(-1, 1) for n, codes in zip(names, told, strict=False)},
            vectors.digest,
        )
        for block, told in answers.items()
    }
