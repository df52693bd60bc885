"""Ledgers of a comparison as tables."""

from importlib.metadata import version

import numpy as np
import pytest

from bbo.campaign import Campaign
from bbo.errors import CampaignError, LedgerError
from experiments.compare.reading import designs_of, jobs_in, read
from experiments.compare.suite import Job
from experiments.methods.prior import PlainPrior
from tests.experiments.compare.small import BATCH, BUDGET, PLAIN, first_number, line, run


def test_every_query_is_a_row_in_its_order(root):
    found = read(root)
    assert len(found.queries) == 4 * BUDGET
    for (problem, method, seed), table in found.queries.groupby(["problem", "method", "seed"]):
        designs = designs_of(Job(seed, problem, method), root)
        values = [first_number(design) for design in designs.numpy()]
        np.testing.assert_array_equal(table["value"], values)
        assert table["query"].tolist() == list(range(1, BUDGET + 1))
        assert table["round"].tolist() == [k // BATCH for k in range(BUDGET)]
        assert table["is_feasible"].tolist() == [not np.isnan(value) for value in values]
        np.testing.assert_array_equal(table["best"], np.fmax.accumulate(values))
        assert table["network_evaluations"].tolist() == [100.0 * (1 + k // BATCH) for k in range(BUDGET)]
        assert table["cpu_seconds"].tolist() == [0.5 * (1 + k // BATCH) for k in range(BUDGET)]


def test_every_campaign_is_a_row(root):
    found = read(root)
    assert found.campaigns[["problem", "method", "seed"]].values.tolist() == [
        ["line", "ours", 0],
        ["line", "ours", 1],
        ["line", "prior", 0],
        ["line", "prior", 1],
    ]
    assert found.campaigns["is_finished"].all()
    assert found.campaigns["uid"].is_unique
    assert (found.campaigns[["budget", "batch_size", "n_queries"]] == [BUDGET, BATCH, BUDGET]).all(axis=None)
    last = found.queries.groupby(["problem", "method", "seed"]).tail(1)
    assert found.campaigns["best"].tolist() == last["best"].tolist()
    assert found.campaigns["n_feasible"].sum() == found.queries["is_feasible"].sum() < 4 * BUDGET
    assert found.campaigns["cpu_seconds"].tolist() == [1.5] * 4
    record = found.records[Job(1, "line", "ours")]
    assert record.config["campaign"]["seed"] == 1
    assert record.versions[0]["torch"] == version("torch")


def test_latents_come_in_the_order_of_the_queries(root):
    job = Job(0, "line", "ours")
    assert str(job) == "line/ours/seed-0"


def test_an_unfinished_campaign_is_read_while_it_is_driven(tmp_path):
    run(tmp_path, "line", "prior", 3, rounds=1)
    at = line()
    directory = Job(3, "line", "prior").directory(tmp_path)
    settings = {"budget": BUDGET, "batch_size": BATCH, "seed": 3, "encoder": at.encoder, "method": PLAIN}
    with Campaign.open(directory, prior=at.prior, oracle=at.oracle, **settings) as campaign:
        asked = campaign.ask()
        found = read(tmp_path)
        assert found.campaigns.loc[0, ["n_queries", "is_finished"]].tolist() == [BATCH, False]
        assert len(found.queries) == BATCH
        campaign.tell(asked[0].id, 1.0)
        assert len(read(tmp_path).queries) == BATCH + 1


def test_what_was_not_counted_is_not_a_number(tmp_path):
    run(tmp_path, "line", "prior", 0, PlainPrior())
    (tmp_path / "line" / "prior" / "seed-7").mkdir()  # begun, and killed before there was a ledger
    (tmp_path / "line" / "prior" / "seed-x").mkdir()
    (tmp_path / "report.html").touch()
    assert jobs_in(tmp_path) == [Job(0, "line", "prior")]
    found = read(tmp_path)
    assert found.queries[["network_evaluations", "cpu_seconds"]].isna().all(axis=None)
    assert found.campaigns["cpu_seconds"].isna().all()


def test_a_campaign_without_a_query_is_a_campaign(tmp_path):
    run(tmp_path, "line", "prior", 0, rounds=0)
    found = read(tmp_path)
    assert found.campaigns[["n_queries", "is_finished", "n_feasible"]].values.tolist() == [[0, False, 0]]
    assert len(found.queries) == 0
    assert found.queries["is_feasible"].dtype == bool


def test_seeds_are_sorted_as_numbers(tmp_path):
    for seed in (10, 9):
        run(tmp_path, "line", "prior", seed, rounds=0)
    assert [job.seed for job in jobs_in(tmp_path)] == [9, 10]


def test_a_folder_without_campaigns_and_a_broken_ledger_are_named(tmp_path):
    with pytest.raises(CampaignError, match=r"expected campaigns in .*/PROBLEM/METHOD/seed-K, got none"):
        read(tmp_path)
    run(tmp_path, "line", "prior", 0, rounds=0)
    (tmp_path / "line" / "prior" / "seed-0" / "ledger.sqlite").write_bytes(
        b"not a database, by any means" * 40
    )
    with pytest.raises(LedgerError, match=r"the campaign line/prior/seed-0 in .* cannot be read"):
        read(tmp_path)


def test_what_people_gave_is_no_query_of_the_comparison(tmp_path):
    run(tmp_path, "line", "prior", 0, rounds=1)
    at = line()
    directory = Job(0, "line", "prior").directory(tmp_path)
    settings = {"budget": BUDGET, "batch_size": BATCH, "seed": 0, "encoder": at.encoder, "method": PLAIN}
    with Campaign.open(directory, prior=at.prior, oracle=at.oracle, **settings) as campaign:
        campaign.tell_new(np.array([[9.0, 0.0]]), [9.0])
    found = read(tmp_path)
    assert found.campaigns["n_queries"].tolist() == [BATCH]
    assert found.queries["value"].max() < 9
    assert len(designs_of(Job(0, "line", "prior"), tmp_path)) == BATCH
