"""The batch: which particles can be chosen, and what each rule chooses of them."""

import pytest
import torch

from bbo.errors import ConfigError
from bbo.selection import Best, Conditioned, Draws, Pool, Selection
from smc.result import SMCResult, StepInfo, Trace


def result(log_w, x0=None, log_z=None, log_psi=None):
    n_islands, p = log_w.shape
    x0 = torch.arange(n_islands * p, dtype=torch.float32)[:, None] if x0 is None else x0
    log_z = torch.zeros(n_islands) if log_z is None else log_z
    count = torch.zeros(n_islands, dtype=torch.long)
    step = StepInfo(log_z, log_z, count.bool(), count, torch.zeros(0, p, dtype=torch.long))
    trace = Trace.of([step], torch.zeros(2, n_islands, dtype=torch.long), p)
    return SMCResult(x0, log_w, log_z, torch.zeros_like(log_w) if log_psi is None else log_psi, trace)


def pool_of(results, known=None, decode=lambda x0: x0, encode=lambda designs: designs):
    designs = decode(torch.cat([r.x0 for r in results]))
    X = encode(designs)
    return Pool.of(results, designs, X, torch.zeros(0, X.shape[1]) if known is None else known)


def no_belief(picked):
    raise AssertionError("this rule asks for no belief")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(results, n, seed=0):
    return Draws()(pool_of(results), n, no_belief, seeded(seed))


class TestPool:
    def test_holds_what_belongs_to_each_particle(self):
        shards = [
            result(torch.log(torch.tensor([[0.1, 0.9]])), log_psi=torch.tensor([[1.0, 2.0]])),
            result(
                torch.log(torch.tensor([[0.6, 0.4], [0.5, 0.5]])),
                x0=torch.tensor([[10.0], [11.0], [12.0], [13.0]]),
                log_psi=torch.tensor([[3.0, 4.0], [5.0, 6.0]]),
            ),
        ]
        pool = pool_of(shards, encode=lambda designs: 2 * designs)
        assert [(p.shard, p.island, p.row) for p in pool.picks] == [
            (0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1), (1, 1, 2), (1, 1, 3),
        ]  # fmt: skip
        torch.testing.assert_close(pool.log_w.exp(), torch.tensor([0.1, 0.9, 0.6, 0.4, 0.5, 0.5]))
        assert pool.utility.tolist() == [1, 2, 3, 4, 5, 6]
        assert pool.X.flatten().tolist() == [0, 2, 20, 22, 24, 26]
        assert pool.islands() == [[0, 1], [2, 3], [4, 5]]

    def test_copies_and_the_dead_are_left_out(self):
        x0 = torch.tensor([[1.0], [1.0], [2.0], [3.0]])
        pool = pool_of([result(torch.log(torch.tensor([[0.5, 0.3, 0.2, 0.0]])), x0)])
        assert [p.row for p in pool.picks] == [0, 2]

    def test_a_dead_island_gives_nothing(self):
        log_z = torch.tensor([0.0, -torch.inf])
        pool = pool_of([result(torch.log(torch.full((2, 3), 1 / 3)), log_z=log_z)])
        assert {p.island for p in pool.picks} == {0}

    def test_latents_of_one_design_count_once_in_all_islands_and_shards(self):
        shard = result(torch.zeros(2, 1), x0=torch.tensor([[0.2], [0.4]]))
        other = result(torch.zeros(1, 1), x0=torch.tensor([[0.3]]))
        pool = pool_of([shard, other], decode=torch.round)
        assert [(p.shard, p.row) for p in pool.picks] == [(0, 0)]

    def test_designs_that_were_proposed_before_are_left_out(self):
        pool = pool_of([result(torch.zeros(1, 3))], known=torch.tensor([[1.0]], dtype=torch.float64))
        assert [p.row for p in pool.picks] == [0, 2]

    def test_designs_that_the_encoder_cannot_tell_apart_stay(self):
        pool = pool_of([result(torch.zeros(1, 3))], encode=torch.zeros_like)
        assert len(pool.picks) == 3


class TestDraws:
    def test_one_from_every_island_of_every_shard(self):
        x0 = torch.arange(100.0, 112.0)[:, None]
        shards = [result(torch.log(torch.full((3, 4), 0.25))), result(torch.full((3, 4), -1.4), x0)]
        picks = draw(shards, 6)
        assert [(p.shard, p.island) for p in picks] == [(s, i) for s in range(2) for i in range(3)]
        assert all(p.row // 4 == p.island for p in picks)

    def test_follow_the_weights(self):
        log_w = torch.log(torch.tensor([[0.5, 0.3, *[0.01] * 20]]))
        counts = torch.zeros(22)
        for seed in range(2000):
            counts[draw([result(log_w)], 1, seed)[0].row] += 1
        torch.testing.assert_close(counts / 2000, log_w.exp()[0], atol=0.04, rtol=0)

    def test_more_than_islands_takes_second_draws_without_repeats(self):
        picks = draw([result(torch.log(torch.full((2, 4), 0.25)))], 7)
        assert len({p.row for p in picks}) == 7
        assert [p.island for p in picks[:2]] == [0, 1]

    def test_fewer_than_islands_draws_lots(self):
        chosen = {tuple(p.island for p in draw([result(torch.zeros(5, 1))], 2, seed)) for seed in range(50)}
        assert len(chosen) > 5
        assert all(len(set(islands)) == 2 for islands in chosen)

    def test_no_more_than_there_are(self):
        assert len(draw([result(torch.zeros(2, 1))], 9)) == 2


def test_best_takes_the_highest_utility_whatever_the_weight():
    log_w = torch.log(torch.tensor([[0.98, 0.01, 0.01], [0.4, 0.3, 0.3]]))
    pool = pool_of([result(log_w, log_psi=torch.tensor([[1.0, 5.0, 3.0], [4.0, 0.0, 2.0]]))])
    assert [p.row for p in Best()(pool, 3, no_belief, seeded())] == [1, 3, 2]


class TestConditioned:
    """Utility at x: 10 - x for designs 0…5, less 6 within 1.5 of what was picked."""

    pool = pool_of([result(torch.zeros(1, 6), log_psi=10 - torch.arange(6.0)[None])])

    @staticmethod
    def believe(picked):
        def utility(X):
            is_near = (torch.cdist(X, picked) < 1.5).any(1)
            return 10 - X[:, 0] - 6 * is_near.float()

        return utility

    def test_a_pick_takes_its_neighbours_worth_away(self):
        picks = Conditioned(n_steps=3)(self.pool, 3, self.believe, seeded())
        assert [p.row for p in picks] == [0, 2, 4]

    def test_of_one_step_is_the_best(self):
        picks = Conditioned(n_steps=1)(self.pool, 3, no_belief, seeded())
        assert [p.row for p in picks] == [0, 1, 2]

    def test_steps_share_the_batch(self):
        seen = []

        def believe(picked):
            seen.append(len(picked))
            return self.believe(picked)

        assert len(Conditioned(n_steps=2)(self.pool, 5, believe, seeded())) == 5
        assert seen == [3]

    def test_nothing_is_picked_twice_and_no_more_than_there_are(self):
        picks = Conditioned(n_steps=4)(self.pool, 9, self.believe, seeded())
        assert sorted(p.row for p in picks) == list(range(6))

    def test_refuses_no_steps(self):
        with pytest.raises(ConfigError, match="at least 1, got 0"):
            Conditioned(n_steps=0)


@pytest.mark.parametrize("rule", [Draws(), Best(), Conditioned()])
def test_rules_are_selections(rule):
    assert isinstance(rule, Selection)
    empty = pool_of([result(torch.zeros(1, 1), log_z=torch.tensor([-torch.inf]))])
    assert rule(empty, 4, no_belief, seeded()) == []
