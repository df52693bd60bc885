"""The batch: which particles can be chosen, and what each rule chooses of them."""

import pytest
import torch

from bbo.errors import ConfigError
from bbo.executor import Sampled, keys_of
from bbo.selection import Best, Conditioned, Draws, Pool, Selection, Spread
from smc.result import SMCResult, StepInfo, Trace


def result(log_w, x0=None, log_z=None, log_psi=None):
    n_islands, p = log_w.shape
    x0 = torch.arange(n_islands * p, dtype=torch.float32)[:, None] if x0 is None else x0
    log_z = torch.zeros(n_islands) if log_z is None else log_z
    count = torch.zeros(n_islands, dtype=torch.long)
    step = StepInfo(log_z, log_z, count.bool(), count, torch.zeros(0, p, dtype=torch.long))
    trace = Trace.of([step], torch.zeros(2, n_islands, dtype=torch.long), p)
    return SMCResult(x0, log_w, log_z, torch.zeros_like(log_w) if log_psi is None else log_psi, trace)


def pool_of(results, proposed=None, decode=lambda x0: x0, encode=lambda designs: designs):
    shards = [Sampled(r, keys_of(designs := decode(r.x0)), encode(designs)) for r in results]
    return Pool.of(shards, proposed)


def picked(rule, pool, n, believe=None, seed=0):
    return [pool.picks[place] for place in rule(pool, n, believe or no_belief, seeded(seed))]


def no_belief(chosen):
    raise AssertionError("this rule asks for no belief")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(results, n, seed=0):
    return picked(Draws(), pool_of(results), n, seed=seed)


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
        weights = torch.tensor([0.1, 0.9, 0.6, 0.4, 0.5, 0.5], dtype=torch.float64)
        torch.testing.assert_close(pool.log_w.exp(), weights, atol=1e-6, rtol=0)
        assert pool.island.tolist() == [0, 0, 1, 1, 2, 2]
        assert pool.X.flatten().tolist() == [0, 2, 20, 22, 24, 26]
        assert pool.utility.tolist() == [1, 2, 3, 4, 5, 6]
        assert pool.X.flatten().tolist() == [0, 2, 20, 22, 24, 26]
        assert pool.islands() == [[0, 1], [2, 3], [4, 5]]

    def test_particles_of_one_design_have_their_weight_together_and_the_dead_none(self):
        x0 = torch.tensor([[1.0], [2.0], [1.0], [3.0]])
        pool = pool_of([result(torch.log(torch.tensor([[0.5, 0.2, 0.3, 0.0]])), x0)])
        assert [p.row for p in pool.picks] == [0, 1]
        assert pool.log_w.exp().tolist() == pytest.approx([0.8, 0.2])

    def test_a_dead_island_gives_nothing(self):
        log_z = torch.tensor([0.0, -torch.inf])
        pool = pool_of([result(torch.log(torch.full((2, 3), 1 / 3)), log_z=log_z)])
        assert {p.island for p in pool.picks} == {0}

    def test_islands_share_designs_that_are_chosen_once(self):
        shard = result(torch.zeros(2, 1), x0=torch.tensor([[0.2], [0.4]]))
        other = result(torch.zeros(1, 2), x0=torch.tensor([[0.3], [1.0]]))
        pool = pool_of([shard, other], decode=torch.round)
        assert pool.design_ids == [0, 0, 0, 1]
        for rule in (Draws(), Best(), Conditioned(2)):
            believe = lambda chosen: pool.utility  # noqa: E731
            rows = [pool.X[place].item() for place in rule(pool, 4, believe, seeded())]
            assert sorted(rows) == [0.0, 1.0]

    def test_designs_that_were_proposed_before_are_left_out(self):
        pool = pool_of(
            [result(torch.zeros(1, 3))], proposed=torch.tensor([[1.0], [-0.0]], dtype=torch.float64)
        )
        assert [p.row for p in pool.picks] == [2]

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
    assert [p.row for p in picked(Best(), pool, 3)] == [1, 3, 2]


class TestConditioned:
    """Utility at x: 10 - x for designs 0…5, less 6 within 1.5 of what was picked."""

    pool = pool_of([result(torch.zeros(1, 6), log_psi=10 - torch.arange(6.0)[None])])

    def believe(self, chosen):
        X = self.pool.X
        is_near = (torch.cdist(X, X[chosen]) < 1.5).any(1)
        return 10 - X[:, 0] - 6 * is_near.float()

    def rows(self, n_steps, n, believe=None):
        return [p.row for p in picked(Conditioned(n_steps), self.pool, n, believe or self.believe)]

    def test_a_pick_takes_its_neighbours_worth_away(self):
        assert self.rows(3, 3) == [0, 2, 4]

    def test_of_one_step_is_the_best(self):
        assert self.rows(1, 3, no_belief) == [0, 1, 2]

    def test_steps_share_the_batch(self):
        seen = []

        def believe(chosen):
            seen.append(len(chosen))
            return self.believe(chosen)

        assert len(self.rows(2, 5, believe)) == 5
        assert seen == [3]

    def test_nothing_is_picked_twice_and_no_more_than_there_are(self):
        assert sorted(self.rows(4, 9)) == list(range(6))

    def test_refuses_no_steps(self):
        with pytest.raises(ConfigError, match="at least 1, got 0"):
            Conditioned(n_steps=0)


@pytest.mark.parametrize("rule", [Draws(), Best(), Conditioned()])
def test_rules_are_selections(rule):
    assert isinstance(rule, Selection)
    empty = pool_of([result(torch.zeros(1, 1), log_z=torch.tensor([-torch.inf]))])
    assert rule(empty, 4, no_belief, seeded()) == []


class TestSpread:
    def pool(self, x, utility):
        x0 = torch.tensor(x)[:, None] if torch.tensor(x).ndim == 1 else torch.tensor(x)
        n = len(x0)
        return pool_of([result(torch.zeros(1, n), x0, log_psi=torch.tensor([utility]))])

    def test_without_weight_it_is_best(self):
        utility = torch.randn(1, 20, generator=seeded()).tolist()[0]
        pool = self.pool(list(map(float, range(20))), utility)
        assert picked(Spread(weight=0.0), pool, 7) == picked(Best(), pool, 7)

    def test_with_all_weight_it_is_the_farthest_from_all_picked_so_far(self):
        """On a line at 0, 1, 4, 9, 10 with 4 as the best: 10 is farthest from 4, then 0 from both (4 + 10 > 5 + 1)."""
        pool = self.pool([0.0, 1.0, 4.0, 9.0, 10.0], [0.0, 0.0, 1.0, 0.0, 0.0])
        assert [p.row for p in picked(Spread(weight=1e9), pool, 3)] == [2, 4, 0]

    @pytest.mark.parametrize("weight", [0.5, 1.0, 2.0, 4.0])
    def test_the_score_is_its_formula(self, weight):
        X = torch.randn(30, 3, generator=seeded(1))
        utility = torch.randn(30, generator=seeded(2)).exp()
        pool = self.pool(X.tolist(), utility.tolist())
        u = utility.double() / utility.double().std(correction=0)
        squares = (X[:, None] - X[None]).double().square().sum(2)
        rms = (squares.sum() / 900).sqrt()  # over all pairs, a design with itself among them
        expected = [int(u.argmax())]
        while len(expected) < 12:
            score = u + weight * squares.sqrt()[expected].mean(0) / rms
            expected.append(max(set(range(30)) - set(expected), key=lambda i: float(score[i])))
        assert expected != [p.row for p in picked(Best(), pool, 12)]
        assert [p.row for p in picked(Spread(weight), pool, 12)] == expected

    def test_units_make_no_difference(self):
        x, utility = torch.randn(30, 2, generator=seeded(3)), torch.randn(30, generator=seeded(4))
        there = picked(Spread(2.0), self.pool(x.tolist(), utility.tolist()), 8)
        assert picked(Spread(2.0), self.pool((1000 * x).tolist(), (0.25 * utility + 7).tolist()), 8) == there

    def test_what_does_not_vary_decides_nothing(self):
        same_utility = self.pool([0.0, 1.0, 2.0, 8.0], [0.1] * 4)
        assert [p.row for p in picked(Spread(), same_utility, 2)] == [0, 3]
        same_features = pool_of(
            [result(torch.zeros(1, 3), torch.arange(3.0)[:, None], log_psi=torch.tensor([[1.0, 3.0, 2.0]]))],
            encode=lambda designs: torch.ones(len(designs), 1),
        )
        assert [p.row for p in picked(Spread(), same_features, 3)] == [1, 2, 0]

    def test_no_design_twice_and_no_more_than_there_are(self):
        x0 = torch.tensor([[1.0], [2.0], [1.0], [3.0]])
        pool = pool_of([result(torch.zeros(2, 2), x0, log_psi=torch.tensor([[5.0, 1.0], [5.0, 1.0]]))])
        assert sorted(p.row for p in picked(Spread(), pool, 9)) == [0, 1, 3]
        nobody = pool_of([result(torch.zeros(1, 1), torch.tensor([[1.0]]))], proposed=torch.tensor([[1.0]]))
        assert picked(Spread(), nobody, 3) == []
        assert picked(Spread(), pool, 0) == []

    @pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
    def test_a_weight_that_is_none_is_refused(self, weight):
        with pytest.raises(ConfigError, match="weight must be a finite number of at least 0, got"):
            Spread(weight)
