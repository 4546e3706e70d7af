"""Compiles a header with a small program round it, and runs it on rows of bytes."""

import shutil
import subprocess

import numpy as np
import pytest

CHECKED = [
    *("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
]

_RUN = """
#include <stdio.h>
int main(void) {{
    static {name}_in_t x[{upper}_INPUTS];
    static {name}_out_t y[{upper}_OUTPUTS];
    while (fread(x, sizeof x, 1, stdin) == 1) {{
        {name}_run(x, y);
        fwrite(y, sizeof y, 1, stdout);
    }}
    return 0;
}}
"""
_LEARN = """
#include <stdio.h>
int main(void) {{
    static {name}_word_t x[{upper}_INPUTS], y[{upper}_OUTPUTS];
    int32_t t;
    while (fread(&t, sizeof t, 1, stdin) == 1 && fread(x, sizeof x, 1, stdin) == 1) {{
        {name}_predict(x, y);
        fwrite(y, sizeof y, 1, stdout);
        {name}_learn(x, t);
    }}
    fwrite(&{name}_state, sizeof {name}_state, 1, stdout);
    return 0;
}}
"""


@pytest.fixture
def c99(tmp_path):
    """Compiles and runs headers in a folder of the test's own."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    return Programs(tmp_path)


class Programs:
    """Headers compiled in a folder, with all checks of gcc, and fed with rows of bytes."""

    def __init__(self, folder):
        self.folder = folder

    def built(self, header, program):
        return built(header, self.folder, program)

    def fed(self, program, data):
        return fed(program, data)

    def outputs(self, header, codes):
        return outputs(header, self.folder, codes)

    def learned(self, header, x, t):
        return learned(header, self.folder, x, t)


def built(header, folder, program, options=CHECKED):
    (folder / header.file).write_text(header.text)
    upper = header.name.upper()
    source = f'#define {upper}_IMPLEMENTATION\n#include "{header.file}"\n' + program.format(
        name=header.name, upper=upper
    )
    (folder / "main.c").write_text(source)
    done = subprocess.run(
        ["gcc", *options, "main.c", "-o", "main"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "main"


def fed(program, data):
    done = subprocess.run([program], input=data, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    return done.stdout


def outputs(header, folder, codes, options=CHECKED):
    """Outputs (n, outputs) of rows (n, inputs) by the compiled header."""
    program = built(header, folder, _RUN, options)
    told = fed(
        program, np.ascontiguousarray(codes.reshape(len(codes), -1), header.input_type).tobytes()
    )
    return np.frombuffer(told, header.output_type).reshape(len(codes), header.outputs)


def learned(header, folder, x, t, options=CHECKED):
    """Predictions before each step, and the bytes of the state after all of them."""
    program = built(header, folder, _LEARN, options)
    rows = np.zeros(len(x), [("t", "<i4"), ("x", header.input_type, (header.inputs,))])
    rows["t"], rows["x"] = t, x
    told = fed(program, rows.tobytes())
    size = len(x) * header.outputs * header.output_type.itemsize
    return np.frombuffer(told[:size], header.output_type).reshape(len(x), -1), told[size:]
