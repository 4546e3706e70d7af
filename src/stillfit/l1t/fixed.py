"""The end-to-end vertex network in fixed point: everything between track words and flags."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillfit.core.arrays import Array, Arrays, Ragged
from stillfit.core.errors import ConfigError, ShapeError
from stillfit.l1t import fixed_words
from stillfit.l1t.e2e import E2E, HistogramNetwork, Pattern, Peak
from stillfit.l1t.fixed_words import FRACTIONS, PT, QUALITY, RESOLUTION
from stillfit.l1t.vertexing import (
    BARREL,
    BIN,
    BINS,
    FIRST_FEATURE,
    FRACTION,
    REGION,
    SECTOR,
    Z0_LSB,
    Found,
    at_bins,
    histogram,
)
from stillfit.models.fixed.calibration import best_format, fit_parameters
from stillfit.models.fixed.conversion import convert
from stillfit.models.fixed.formats import Codes, bits_of
from stillfit.models.fixed.layers import FixedLayer, Precision
from stillfit.models.fixed.quantisers import EXACT, Quantiser
from stillfit.models.model import Architecture, Model
from stillfit.models.networks import copy_network
from stillfit.models.tensors import RaggedTensor

STEPS_OF_Z = 2  # bits of the position behind the track word's z0
Z_STEP = Z0_LSB / (1 << STEPS_OF_Z)  # cm
AWAY_FRACTION = 3  # of |bin of the track - winning bin| / 8
WHOLE = 24  # fraction bits at which sums are made whole for the divider


class FixedPattern(Pattern):
    """The filter with taps on a grid, exact scores, and a position in steps of 0.0025 cm.

    The position is the mean of the five bins around the maximum as a divider gives it:
    floor((2 S lean + total) / (2 total)) with S steps per bin, the bias rounded to a step.
    """

    def __init__(self, temperature: float, precision: Precision, bits: int = 8) -> None:
        super().__init__(temperature)
        self.on_taps = Quantiser(bits, signed=True, gradient=precision.gradient)

    def to_members(self, m: int) -> Any:
        """Not in fixed point: a chip holds one filter."""
        raise ConfigError(
            "a fixed-point vertex network has no members; make the ensemble of float networks, "
            "or choose one of its members and convert that"
        )

    def filter(self, rows: int) -> tuple[Tensor, ...]:
        return self.on_taps(self.taps).unbind()  # type: ignore[no-any-return]

    def fit(self) -> None:
        """The range of the taps from their present values."""
        width = self.on_taps.format.width
        taps = self.taps.detach().double().numpy()
        self.on_taps.set_format(best_format(taps, width, signed=True))

    def bias_code(self) -> int:
        """The bias in steps of the position."""
        return int(np.floor(float(self.bias.detach()) / Z_STEP + 0.5))

    def hard(self, sums: Tensor, scores: Tensor) -> Peak:
        peak = super().hard(sums, scores)
        window = torch.round(at_bins(sums, peak.bins, 2).double() * 2.0**WHOLE).long()
        total = window.sum(1)
        lean = window @ torch.arange(-2, 3)
        per_bin = 16 << STEPS_OF_Z
        steps = torch.div(
            2 * per_bin * lean + total, (2 * total).clamp(min=1), rounding_mode="floor"
        )
        middle = (2 * peak.bins + 1 - BINS) * (per_bin // 2)
        code = torch.where(peak.score > 0, middle + steps + self.bias_code(), 0)
        return peak._replace(z0=code.float() * Z_STEP)


class FixedE2E(E2E):
    """`E2E` in fixed point, from track words on: bit for bit what `fixed_chain` has in integers.

    Tracks are digitised to words first (`fixed_words`). Dense layers, filter and histogram weights
    have quantisers; the histogram adds exactly and saturates at `histogram` bits; scores,
    arg-max and the association's logits are exact. Each input of the two track networks has a
    format of its own, no finer than its word. The event's sigma is not on the chip: it is read
    from the chip's histogram in floating point.

    `precision`: knobs of `models.fixed.Precision`; `features`: bits of the networks' inputs (those
    of `precision`, if None); `taps`: of the filter.
    """

    columns = fixed_words.WORD_COLUMNS

    def __init__(
        self,
        *,
        temperature: float = 0.3,
        seed: int = 0,
        precision: Mapping[str, Any] | None = None,
        features: int | None = None,
        histogram: int = 14,
        taps: int = 8,
    ) -> None:
        super().__init__(temperature=temperature, seed=seed)
        chosen = Precision(**(precision or {}))
        bits = features or chosen.inputs
        out = Quantiser(chosen.inputs, rounding=chosen.rounding, overflow=chosen.overflow)
        self.weight = nn.Sequential(*convert(self.weight, chosen), out)
        self.associate = convert(self.associate, chosen)
        own = tuple(FRACTIONS.tolist())
        _fed(self.weight, bits, chosen, own[:3])
        _fed(self.associate, bits, chosen, (own[PT], own[QUALITY], own[RESOLUTION], AWAY_FRACTION))
        self.pattern = FixedPattern(temperature, chosen, taps)
        self.pattern.fit()
        self.histogram_bits = histogram
        self.score_bits()
        for name, module in self.named_modules():
            if isinstance(module, FixedLayer):
                module.label = name

    @property
    def on_weight(self) -> Quantiser:
        """The quantiser of a track's weight, as it enters the histogram."""
        found = self.weight[len(self.weight) - 1]
        assert isinstance(found, Quantiser)
        return found

    def score_bits(self) -> int:
        """Bits of a score; `ConfigError` where they are more than can be exact."""
        assert isinstance(self.pattern, FixedPattern)
        low, high = self.pattern.on_taps.format.limits()
        taps = 3 * max(-int(low[0]), int(high[0]))
        bits = bits_of(taps * ((1 << self.histogram_bits) - 1))
        if bits > EXACT + 1:
            raise ConfigError(
                f"the accumulator of the pattern filter needs {bits} bits (a histogram of "
                f"{self.histogram_bits} bits, taps of {self.pattern.on_taps.format.width}) and "
                f"{EXACT + 1} are exact; give the histogram or the taps fewer"
            )
        return bits

    def prepare(self, inputs: Arrays) -> Arrays:
        """Raw tracks as the codes of their words, in the places of `VertexFinder.prepare`."""
        codes, sector, offsets = fixed_words.encoded(inputs)
        given = fixed_words.inputs_of(codes, sector)
        values = np.empty((len(sector), FIRST_FEATURE + self.n_features), np.float16)
        values[:, BIN] = given.place >> 4
        values[:, FRACTION] = ((given.place & 15) + 0.5) / 16
        values[:, SECTOR] = given.sector
        values[:, BARREL] = given.barrel
        values[:, REGION] = given.region
        values[:, FIRST_FEATURE:] = np.ldexp(given.features.astype(np.float32), -FRACTIONS)
        return {"tracks": Ragged(values, offsets)}

    def features(self, tracks: dict[str, Array]) -> list[Array]:
        raise ShapeError("a fixed-point network reads track words: call prepare")

    def table_codes(self) -> tuple[Codes, Codes]:
        """The z0 tables in steps of the track word's z0."""
        tables = (self.calibration.z0_sector, self.calibration.z0_barrel)
        both = [np.rint(table.detach().double().numpy() / Z0_LSB) for table in tables]
        return both[0].astype(np.int64), both[1].astype(np.int64)

    def threshold_code(self) -> int:
        """The logit, in steps of its sum, from which a track is given to the vertex."""
        fraction = self.logit_fraction
        reach = np.ldexp(float(self.calibration.threshold), fraction)
        return int(np.clip(np.ceil(reach), -(2**52), 2**52))

    @property
    def logit_fraction(self) -> int:
        """Fraction bits of the association's logit."""
        last = self.associate[len(self.associate) - 1]
        assert isinstance(last, FixedLayer)
        return int(last.fraction[0])

    def _peak(self, tracks: RaggedTensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        columns = tracks.values
        x = columns[:, FIRST_FEATURE:].float()
        sector, barrel = (torch.from_numpy(table) for table in self.table_codes())
        code = torch.floor(columns[:, BIN].float() * 16 + columns[:, FRACTION].float() * 16).long()
        code = code - sector[columns[:, SECTOR].long()] - barrel[columns[:, BARREL].long()]
        bins = (code >> 4).clamp(0, BINS - 1)
        weights = self.weight(x[:, :3])[:, 0].float()
        full = (1 << self.histogram_bits) - 1
        most = full * 2.0 ** -self.on_weight.format.f[0]
        sums = histogram(tracks, bins, weights).clamp(max=most)
        return x, bins, weights, sums, self.pattern.scores(sums)

    def answer(self, peak: Peak, logits: Tensor) -> Found:
        found = super().answer(peak, logits)
        # On the logit's own grid, so that comparing whole numbers is the same.
        at = self.threshold_code() * 2.0**-self.logit_fraction
        return found._replace(association=torch.sigmoid(logits - at))


def _fed(layers: nn.Module, bits: int, precision: Precision, finest: tuple[int, ...]) -> None:
    """Give the first layer an input quantiser with a format for each feature."""
    first = next(module for module in layers.modules() if isinstance(module, FixedLayer))
    first.on_input = Quantiser(
        bits,
        channels=len(finest),
        finest=finest,
        rounding=precision.rounding,
        overflow=precision.overflow,
    )


def fixed_e2e(model: Model, **arguments: Any) -> Model:
    """A float `E2E` model in fixed point, its weights taken over; `arguments` of `FixedE2E`.

    Not yet calibrated: the ranges of what passes between the layers come from data
    (`models.fixed.calibrated`). `ConfigError` for another kind of network.
    """
    if type(model.network) is not E2E:
        raise ConfigError(
            f"only an E2E network has a whole-number chain, this is {type(model.network).__name__}"
            "; convert the parts of another by models.fixed.convert"
        )
    given = {"temperature": model.network.pattern.temperature, **arguments}
    seed = model.architecture.arguments.get("seed")
    if isinstance(seed, int):
        given["seed"] = seed
    network = FixedE2E(**given)
    old = copy_network(model.network).state_dict()
    own = network.state_dict()
    network.load_state_dict({**own, **old})
    fit_ranges(network)
    return Model(network.eval(), model.task, Architecture("l1t.fixed-e2e", given))


def fit_ranges(network: HistogramNetwork) -> None:
    """Ranges of all weights and of the filter's taps from their present values."""
    for module in network.modules():
        if isinstance(module, FixedLayer):
            fit_parameters(module)
    assert isinstance(network.pattern, FixedPattern)
    network.pattern.fit()
