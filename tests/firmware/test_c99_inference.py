"""Whole-number networks in C equal the integer model bit for bit, for every value that comes in."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stillfit.core.errors import ConfigError, MissingExtraError, ShapeError
from stillfit.firmware.c99 import measured, network_header
from stillfit.firmware.c99.compiling import sections
from stillfit.firmware.tools import ToolError
from stillfit.models.fixed import (
    FixedConv1d,
    FixedDense,
    FixedMean,
    Format,
    Precision,
    Quantiser,
    convert,
    integer,
)
from stillfit.models.fixed.formats import OVERFLOWS, ROUNDINGS
from stillfit.models.networks import MLP


def rng(seed=0):
    return np.random.default_rng(seed)


def spread(network, seed=0):
    """Formats of channels at random, and masks of a third of the weights."""
    drawn = rng(seed)
    for layer in network.modules():
        if isinstance(layer, Quantiser):
            old = layer.format
            by = drawn.integers(-2, 3, len(old))
            layer.set_format(
                Format.channels(
                    old.k,
                    np.array(old.i) + by,
                    np.array(old.f) - by,
                )
            )
        if isinstance(layer, FixedDense):
            layer.mask.copy_(torch.from_numpy(drawn.random(tuple(layer.mask.shape)) < 0.6))
    return network


def dense(precision, seed=0, hidden=(10, 9)):
    torch.manual_seed(seed)
    return spread(convert(MLP(3, hidden, 2), precision).eval(), seed)


def codes(header, network, n=2000, seed=1, shape=None):
    """Half of them of the whole type, half near the middle."""
    info = np.iinfo(header.input_type)
    drawn = rng(seed)
    x = drawn.integers(info.min, info.max + 1, (n, header.inputs))
    x[::2] = np.clip(drawn.integers(-90, 90, x[::2].shape), info.min, info.max)
    return x if shape is None else x.reshape(n, *shape)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("overflow", OVERFLOWS)
def test_dense_networks_equal_the_integer_model(rounding, overflow, c99):
    wide = 12 if rounding == "even" else 8
    network = integer(
        dense(
            Precision(
                weights=wide,
                inputs=wide,
                rounding=rounding,
                overflow=overflow,
                per_channel=rounding != "floor",
                per_input=overflow != "wrap",
                accumulator=40,
            )
        )
    )
    header = network_header(network, "net")
    x = codes(header, network)
    np.testing.assert_array_equal(c99.outputs(header, x), network.run(x).codes)


def test_convolutions_pools_and_means_equal_the_integer_model(c99):
    torch.manual_seed(3)
    precision = Precision(per_input=True, per_channel=True, rounding="even")
    network = integer(
        spread(
            nn.Sequential(
                FixedConv1d(2, 6, 3, padding=1, precision=precision),
                nn.ReLU(),
                nn.MaxPool1d(3, 2),
                FixedConv1d(6, 4, 3, stride=2, dilation=2, groups=2, precision=precision),
                FixedMean(Precision(inputs=10)),
                nn.Flatten(),
                FixedDense(4, 3, precision=Precision(per_input=True)),
                Quantiser(6, rounding="floor", overflow="wrap"),
            ).eval(),
            5,
        )
    )
    header = network_header(network, "net", shape=(2, 19))
    x = codes(header, network, shape=(2, 19))
    np.testing.assert_array_equal(c99.outputs(header, x), network.run(x).codes)


def test_flattened_positions_meet_their_own_formats(c99):
    network = integer(
        spread(
            nn.Sequential(
                FixedConv1d(1, 3, 2, precision=Precision(per_channel=True)),
                nn.ReLU(),
                nn.Flatten(),
                FixedDense(12, 2, bias=False, precision=Precision(per_input=True)),
            ).eval(),
            2,
        )
    )
    header = network_header(network, "net", shape=(1, 5))
    x = codes(header, network, shape=(1, 5))
    np.testing.assert_array_equal(c99.outputs(header, x), network.run(x).codes)


def test_inputs_of_another_format_are_rounded_as_the_first_quantiser_says(c99):
    network = integer(dense(Precision(rounding="even")))
    given = Format.channels([0, 1, 1], [4, 3, 2], [8, 9, 5])
    header = network_header(network, "net", inputs=given)
    x = codes(header, network)
    want = network.run(x, np.array(given.f)).codes
    np.testing.assert_array_equal(c99.outputs(header, x), want)


_RELOAD = """
#include <stdio.h>
#include <string.h>
int main(void) {{
    static {name}_in_t x[{upper}_INPUTS];
    static {name}_out_t y[{upper}_OUTPUTS];
    static unsigned char image[sizeof {name}_weights];
    if (fread(image, %d, 1, stdin) != 1) return 1;
    memcpy(&{name}_weights, image, %d);
    while (fread(x, sizeof x, 1, stdin) == 1) {{
        {name}_run(x, y);
        fwrite(y, sizeof y, 1, stdout);
    }}
    return 0;
}}
"""


def test_reloaded_weights_are_those_of_the_other_network(c99):
    one = dense(Precision())
    other = dense(Precision())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.manual_seed(7)))
    first = network_header(integer(one), "net", design="reloadable")
    second = network_header(integer(other), "net", design="reloadable")
    size = len(second.image)
    x = codes(first, None)
    program = c99.built(first, _RELOAD % (size, size))
    told = c99.fed(program, second.image + x.astype(first.input_type).tobytes())
    got = np.frombuffer(told, first.output_type).reshape(len(x), -1)
    np.testing.assert_array_equal(got, integer(other).run(x).codes)
    assert (got != integer(one).run(x).codes).any()


def test_code_depends_on_formats_and_masks_alone():
    one, other = dense(Precision()), dense(Precision())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.4)
    texts = [network_header(integer(n), "net").text.split("};", 1)[1] for n in (one, other)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_real_features_are_encoded_as_the_model_does(rounding, c99):
    network = dense(Precision(rounding=rounding))
    drawn = rng(4)
    scale = next(layer for layer in network.modules() if type(layer).__name__ == "Standardise")
    scale.set_from(drawn.normal(5, [0.1, 3, 40], (500, 3)).astype(np.float32))
    model = integer(network)
    header = network_header(model, "net")
    program = c99.built(
        header,
        """
#include <stdio.h>
int main(void) {{
    static float r[{upper}_INPUTS];
    static {name}_in_t x[{upper}_INPUTS];
    while (fread(r, sizeof r, 1, stdin) == 1) {{
        unsigned char ok = (unsigned char){name}_encode(r, x);
        fwrite(x, sizeof x, 1, stdout);
        fwrite(&ok, 1, 1, stdout);
    }}
    return 0;
}}
""",
    )
    real = drawn.normal(5, [0.3, 9, 120], (2000, 3)).astype(np.float32)
    real[0] = [np.inf, -np.inf, 0]
    told = np.frombuffer(
        c99.fed(program, real.tobytes()), [("x", header.input_type, (3,)), ("ok", "u1")]
    )
    assert told["ok"].all()
    np.testing.assert_array_equal(told["x"], model.encode(real))
    assert c99.fed(program, np.array([1, np.nan, 1], np.float32).tobytes())[-1] == 0


def test_ram_and_flash_are_the_compilers_and_hold_the_arrays(c99):
    network = integer(dense(Precision()))
    fixed, loaded = (network_header(network, "net", design=d) for d in ("constant", "reloadable"))
    one, other = measured(fixed), measured(loaded)
    assert one.rodata >= fixed.constant_bytes and one.ram >= fixed.ram_bytes
    assert one.ram <= fixed.ram_bytes + 16  # alignment
    assert other.ram - one.ram >= len(loaded.image) - 4
    assert one.flash == one.code + one.rodata + one.data
    assert one.target and one.compiler.startswith("gcc")


def test_what_has_no_c_is_refused_with_the_remedy():
    network = integer(dense(Precision()))
    with pytest.raises(ConfigError, match="must be a word of a-z, 0-9 and _ that begins with"):
        network_header(network, "int")
    with pytest.raises(ConfigError, match="must be a word"):
        network_header(network, "my net")
    with pytest.raises(ConfigError, match="a design is one of constant, reloadable, got 'flash'"):
        network_header(network, "net", design="flash")
    with pytest.raises(ShapeError, match=r"takes \(3,\), got \(4,\)"):
        network_header(network, "net", shape=(4,))
    with pytest.raises(ConfigError, match="has the step Odd, which has no code in C here"):
        network_header(replace(network, steps=(*network.steps, Odd()), compiled=None), "net")
    convolution = integer(nn.Sequential(FixedConv1d(1, 1, 3)))
    with pytest.raises(ConfigError, match=r"needs the shape of one event: give shape=\(channels"):
        network_header(convolution, "net")
    with pytest.raises(ShapeError, match="needs at least 3 samples, got 2"):
        network_header(convolution, "net", shape=(1, 2))
    far = Format.of(1, 32, -40 + 39)
    with pytest.raises(ConfigError, match=r"needs numbers of .* bits, and 64 can be held; bring"):
        tiny = Quantiser(8)
        tiny.set_format(Format.of(1, -33, 40))
        network_header(
            integer(nn.Sequential(tiny, FixedDense(1, 1))),
            "net",
            inputs=far,
        )


class Odd:
    def __call__(self, flow):
        return flow


def test_a_missing_compiler_and_strange_words_are_said():
    header = network_header(integer(dense(Precision())), "net")
    with pytest.raises(MissingExtraError, match="no-such-gcc is not installed; install gcc"):
        measured(header, "no-such-gcc")
    with pytest.raises(ToolError, match="size printed what this version of stillfit does not know"):
        sections("a new format")


def test_a_failing_compiler_is_said(c99):
    header = network_header(integer(dense(Precision())), "net")
    with pytest.raises(ToolError, match=r"gcc failed with code 1: .*unrecognized"):
        measured(header, "gcc", ("-mno-such-machine",))
