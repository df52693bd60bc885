"""The batch: draws by weight, one from each island in turn, never the same design twice."""

import torch

from bbo.selection import draw_from_islands
from smc.result import SMCResult, StepInfo, Trace


def result(log_w, x0=None, log_z=None):
    n_islands, p = log_w.shape
    x0 = torch.arange(n_islands * p, dtype=torch.float32)[:, None] if x0 is None else x0
    log_z = torch.zeros(n_islands) if log_z is None else log_z
    count = torch.zeros(n_islands, dtype=torch.long)
    step = StepInfo(log_z, log_z, count.bool(), count, torch.zeros(0, p, dtype=torch.long))
    trace = Trace.of([step], torch.zeros(2, n_islands, dtype=torch.long), p)
    return SMCResult(x0, log_w, log_z, torch.zeros_like(log_w), trace)


def draw(results, n, seed=0):
    return draw_from_islands(results, n, torch.Generator().manual_seed(seed))


def test_one_from_every_island_of_every_shard():
    shards = [result(torch.log(torch.full((3, 4), 0.25))) for _ in range(2)]
    picks = draw(shards, 6)
    assert [(p.shard, p.island) for p in picks] == [(s, i) for s in range(2) for i in range(3)]
    assert all(p.row // 4 == p.island for p in picks)


def test_draws_follow_the_weights():
    log_w = torch.log(torch.tensor([[0.1, 0.2, 0.7]]))
    counts = torch.zeros(3)
    for seed in range(2000):
        counts[draw([result(log_w)], 1, seed)[0].row] += 1
    torch.testing.assert_close(counts / 2000, log_w.exp()[0], atol=0.04, rtol=0)


def test_more_than_islands_takes_second_draws_without_repeats():
    picks = draw([result(torch.log(torch.full((2, 4), 0.25)))], 7)
    assert len({p.row for p in picks}) == 7
    assert [p.island for p in picks[:2]] == [0, 1]


def test_fewer_than_islands_draws_lots():
    chosen = {tuple(p.island for p in draw([result(torch.zeros(5, 1))], 2, seed)) for seed in range(50)}
    assert len(chosen) > 5
    assert all(len(set(islands)) == 2 for islands in chosen)


def test_copies_and_the_dead_are_left_out():
    x0 = torch.tensor([[1.0], [1.0], [2.0], [3.0]])
    log_w = torch.log(torch.tensor([[0.5, 0.3, 0.2, 0.0]]))
    picks = draw([result(log_w, x0)], 4)
    assert sorted(float(x0[p.row]) for p in picks) == [1.0, 2.0]


def test_a_dead_island_gives_nothing():
    log_z = torch.tensor([0.0, -torch.inf])
    picks = draw([result(torch.log(torch.full((2, 3), 1 / 3)), log_z=log_z)], 6)
    assert {p.island for p in picks} == {0}
