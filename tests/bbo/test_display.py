"""What a campaign shows while it runs: plain lines, and the panel of a terminal."""

import io
from dataclasses import replace

from rich.console import Console

from bbo.display import _panel, _plain_listener
from bbo.progress import INTERRUPTED, Progress
from bbo.workload import Idle, Sampling

ROUND = Progress(64, spent=16, round=0, best=2.5, n_in_round=2, last=(1.0, None), ess_share=0.5)
ON_WORKERS = Sampling(n_workers=4, n_shards=8, n_done=8, seconds=2.0, n_sampled=8)


def lines(*seen):
    """Return what a listener prints at 80 columns."""
    out = io.StringIO()
    listen = _plain_listener(Console(file=out, width=80))
    for progress in seen:
        listen(progress)
    return out.getvalue().splitlines()


def panel(progress):
    out = io.StringIO()
    Console(file=out, width=80).print(_panel(progress, 16))
    return out.getvalue()


class TestLines:
    def test_a_round_is_one_line_when_it_is_over(self):
        half = replace(ROUND, spent=15, last=(1.0,))
        assert lines(half, ROUND, ROUND) == [
            "round   0     16 of 64 queries  best 2.5  batch 1  failed 1  ESS 50%"
        ]

    def test_workers_have_a_line_of_their_own(self):
        found = lines(replace(ROUND, sampling=ON_WORKERS))
        assert found[1].strip() == "workers 4, shards 8 of 8, 0.25 s each"
        assert len(lines(replace(ROUND, sampling=replace(ON_WORKERS, n_workers=0)))) == 1

    def test_every_reason_to_wait_is_told_once(self):
        seen = [
            replace(ROUND, idle=Idle(share, stage))
            for share, stage in ((0.9, "fit"), (0.8, "fit"), (0.7, "oracle"))
        ]
        told = [line for line in lines(*seen) if line.startswith("warning: ")]
        assert [line.split()[5] for line in told] == ["90%", "70%"]

    def test_an_interruption_is_told_once(self):
        told = " ".join(line.strip() for line in lines(*[replace(ROUND, last=(), stage=INTERRUPTED)] * 3))
        assert told == INTERRUPTED


class TestPanel:
    def test_shows_workers_and_why_they_wait(self):
        shown = panel(replace(ROUND, sampling=ON_WORKERS, idle=Idle(0.9, "oracle"), stage="sample"))
        assert "workers 4, shards 8 of 8, 0.25 s each" in shown
        assert "workers were idle for 90% of the round" in shown
        assert max(map(len, shown.splitlines())) <= 80

    def test_says_nothing_of_workers_where_there_are_none(self):
        shown = panel(replace(ROUND, sampling=replace(ON_WORKERS, n_workers=0)))
        assert "shards" not in shown
        assert "warning" not in shown
