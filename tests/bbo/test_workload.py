"""How busy workers were, and what is said when they were not."""

import pytest

from bbo.progress import Board
from bbo.workload import Idle, Sampling, idle_workers


def sampling(n_workers=4, **more):
    return Sampling(
        **{"n_workers": n_workers, "n_shards": 8, "n_done": 8, "seconds": 8.0, "n_sampled": 8, **more}
    )


class TestIdle:
    @pytest.mark.parametrize(
        ("seconds", "busy", "stage"),
        [
            ({"fit": 8.0, "sample": 2.0}, {"sample": 8.0}, "fit"),
            ({"fit": 1.0, "temper": 5.0, "sample": 2.0}, {"temper": 5.0, "sample": 8.0}, "temper"),
            ({"sample": 10.0}, {"sample": 12.0}, "sample"),
            ({"sample": 2.0, "select": 5.0}, {"sample": 8.0}, "select"),
            ({"sample": 2.0, "oracle": 60.0}, {"sample": 8.0}, "oracle"),
        ],
    )
    def test_the_stage_that_costs_most_is_named(self, seconds, busy, stage):
        found = idle_workers(sampling(), seconds, busy)
        assert found.stage == stage
        assert found.share == pytest.approx(1 - sum(busy.values()) / (4 * sum(seconds.values())))

    def test_busy_workers_are_no_news(self):
        assert idle_workers(sampling(), {"fit": 1.0, "sample": 2.0}, {"sample": 7.0}) is None

    def test_nobody_is_idle_where_nobody_works(self):
        assert idle_workers(sampling(n_workers=0), {"fit": 1.0}, {}) is None
        assert idle_workers(sampling(), {}, {}) is None

    @pytest.mark.parametrize("stage", ["fit", "temper", "sample", "select", "oracle", "something new"])
    def test_it_says_what_helps(self, stage):
        told = str(Idle(0.75, stage))
        assert told.startswith(f"workers were idle for 75% of the round, most in '{stage}': ")
        assert len(told) > len(f"workers were idle for 75% of the round, most in '{stage}': ") + 10

    def test_seconds_a_shard(self):
        assert sampling().seconds_per_shard == 1.0
        assert sampling(n_sampled=0, seconds=0.0).seconds_per_shard is None


class TestBoard:
    def test_a_round_is_looked_back_at_when_the_next_begins(self):
        seen = []
        board = Board(100, seen.append)
        with board.stage("sample"):
            board.sampled(sampling(n_workers=2, n_done=1), 1e-9)
        assert seen[-1].idle is None
        board.begin_round()
        assert seen[-1].idle.stage == "sample"
        assert seen[-1].seconds == {}
        board.begin_round()
        assert seen[-1].idle is None  # nothing was sampled since

    def test_answers_of_two_rounds_are_kept_apart(self):
        seen = []
        board = Board(100, seen.append)
        board.answered([1.0], 3, 2)
        board.answered([5.0], 4, 2)
        board.answered([None], 3, 2)
        assert [(p.round, p.last, p.n_in_round) for p in seen] == [
            (3, (1.0,), 2),
            (4, (5.0,), 2),
            (3, (1.0, None), 2),
        ]
        assert seen[-1].best == 5.0
        assert seen[-1].spent == 3
