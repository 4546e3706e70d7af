"""The in-kernel random numbers: reference words, distributions, independence of streams."""

import numpy as np
from numba import njit
from scipy import stats

from stillfit.l1t.variates import begin_stream, normal, poisson, uniform, word


@njit
def words(seed, n):
    state = np.array([seed], np.uint64)
    out = np.empty(n, np.uint64)
    for i in range(n):
        out[i] = word(state)
    return out


@njit
def draws(seed, n, mean):
    state = np.array([seed], np.uint64)
    flat, bell, counts = np.empty(n), np.empty(n), np.empty(n, np.int64)
    for i in range(n):
        flat[i] = uniform(state)
        bell[i] = normal(state)
        counts[i] = poisson(state, np.exp(-mean))
    return flat, bell, counts


@njit
def first_words(seed, n):
    state = np.zeros(1, np.uint64)
    out = np.empty(n)
    for i in range(n):
        begin_stream(state, seed, i)
        out[i] = uniform(state)
    return out


def test_the_words_are_those_of_splitmix64():
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert words(np.uint64(0), 4).tolist() == expected


def test_distributions_are_uniform_normal_and_poisson():
    flat, bell, counts = draws(np.uint64(7), 400_000, 1.3)
    assert stats.kstest(flat, "uniform").pvalue > 0.01
    assert stats.kstest(bell, "norm").pvalue > 0.01
    assert abs(stats.kurtosis(bell)) < 0.03
    observed = np.bincount(counts, minlength=8)[:8]
    expected = len(counts) * stats.poisson(1.3).pmf(np.arange(8))
    assert (((observed - expected) ** 2 / expected).sum()) < stats.chi2(8).ppf(0.99)


def test_the_tail_beyond_the_edge_of_the_ziggurat_has_its_weight():
    _, bell, _ = draws(np.uint64(8), 2_000_000, 0.1)
    beyond = np.abs(bell) > 3.6541528853610088
    expected = 2 * stats.norm.sf(3.6541528853610088) * len(bell)
    assert abs(beyond.sum() - expected) < 3 * np.sqrt(expected)
    assert 0.4 < (bell[beyond] > 0).mean() < 0.6


def test_neighbouring_streams_and_seeds_are_independent():
    chances = []
    for seed in range(100):
        flat = first_words(np.uint64(seed), 20_000)
        chances.append(stats.kstest(flat, "uniform").pvalue)
        assert abs(np.corrcoef(flat[1:], flat[:-1])[0, 1]) < 0.03
    assert stats.kstest(chances, "uniform").pvalue > 0.01
    a, b = first_words(np.uint64(1), 100_000), first_words(np.uint64(2), 100_000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.01
