"""Every resampling scheme: unbiased counts, and the corners of floating point."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smc.resampling import multinomial, residual, ssp, stratified, systematic

SCHEMES = [systematic, stratified, multinomial, residual, ssp]
EVENNESS = {systematic: 1.0, stratified: 2.0, ssp: 1.0}
"""How far an offspring count can be from p·W."""


def uniforms(log_w, seed):
    return torch.rand(log_w.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def counts_of(scheme, W, n_repeats, seed=0):
    """Return offspring counts, one row a repeat, from one vectorised call."""
    log_w = W.log().expand(n_repeats, -1)
    ancestors = scheme(log_w, uniforms(log_w, seed))
    return torch.nn.functional.one_hot(ancestors, len(W)).sum(1).double()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("w", [[0.1, 0.2, 0.3, 0.4], [0.97, 0.01, 0.01, 0.01], [0.0, 0.5, 0.0, 0.5]])
def test_counts_are_unbiased(scheme, w):
    W = torch.tensor(w)
    counts = counts_of(scheme, W, 20_000)
    standard_error = counts.std(0) / math.sqrt(len(counts))
    assert ((counts.mean(0) - len(w) * W).abs() <= 4 * standard_error + 1e-9).all()


@pytest.mark.parametrize("scheme", list(EVENNESS))
def test_counts_are_even(scheme):
    W = torch.tensor([0.05, 0.15, 0.35, 0.45])
    counts = counts_of(scheme, W, 2_000)
    assert ((counts - 4 * W).abs() < EVENNESS[scheme]).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@given(log_w=st.lists(st.floats(-60, 60), min_size=1, max_size=12), seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_ancestors_exist_and_have_weight(scheme, log_w, seed):
    normal = torch.log_softmax(torch.tensor([log_w, [-math.inf, *[0.0] * len(log_w)][: len(log_w)]]), dim=1)
    rows = normal if len(log_w) > 1 else normal[:1]
    ancestors = scheme(rows, uniforms(rows, seed))
    assert ancestors.shape == rows.shape
    assert ((ancestors >= 0) & (ancestors < len(log_w))).all()
    assert (rows.gather(1, ancestors) > -math.inf).all()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_one_weight_takes_all(scheme, place):
    log_w = torch.full((3, 5), -math.inf)
    log_w[:, place] = 0.0
    assert (scheme(log_w, uniforms(log_w, 0)) == place).all()


def test_equal_weights_all_survive():
    log_w = torch.full((50, 7), -math.log(7))
    for scheme in (systematic, stratified, residual, ssp):
        assert torch.equal(scheme(log_w, uniforms(log_w, 0)), torch.arange(7).expand(50, 7))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_sum_that_ends_below_one_reaches_nobody_beyond(scheme):
    """4,096 equal float32 weights add up to less than 1; weights of zero stand behind them."""
    log_w = torch.full((4, 4097), -math.log(4096) - 1e-6)
    log_w[:, -1] = -math.inf
    ancestors = scheme(log_w, uniforms(log_w, 0))
    assert ancestors.max() < 4096


@pytest.mark.parametrize("scheme", SCHEMES)
def test_islands_do_not_mix_and_streams_repeat(scheme):
    log_w = torch.log_softmax(torch.randn(6, 9, generator=torch.Generator().manual_seed(1)), dim=1)
    first = scheme(log_w, uniforms(log_w, 2))
    assert torch.equal(first, scheme(log_w, uniforms(log_w, 2)))
    changed = log_w.clone()
    changed[3] = torch.log_softmax(torch.arange(9.0), 0)
    others = [0, 1, 2, 4, 5]
    assert torch.equal(scheme(changed, uniforms(changed, 2))[others], first[others])


def test_residual_copies_the_whole_part_for_sure():
    counts = counts_of(residual, torch.tensor([0.1, 0.35, 0.55]), 2_000)
    assert (counts[:, 1] >= 1).all()
    assert (counts[:, 2] >= 1).all()
    assert (counts.sum(1) == 3).all()


def test_ssp_counts_are_negatively_associated():
    """Moving a share from one particle to another: no pair may gain together."""
    counts = counts_of(ssp, torch.tensor([0.15, 0.2, 0.3, 0.35]), 50_000)
    covariance = torch.cov(counts.T)
    off_diagonal = covariance[~torch.eye(4, dtype=torch.bool)]
    assert (off_diagonal < 0.01).all()
    assert off_diagonal.min() < -0.02
