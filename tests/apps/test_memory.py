"""The allocator's setting: a policy of the process, without an effect on any result."""

import platform
import sys

import numpy as np
import pytest

from stillfit.apps.memory import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_not_asked_for_again_page_by_page():
    import resource

    def faults(times):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(times):
            np.ones(10 * 2**20 // 8).sum()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert keep_freed_memory()
    faults(3)
    assert faults(20) < 20 * 10 * 2**20 / 4096 / 10  # a tenth of the pages of 20 fresh arrays


def test_nothing_is_done_where_the_c_library_is_another(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
