"""A campaign whose oracle gives no answer: what was charged, what is in doubt, and what comes first next time."""

import pytest
import torch

from bbo.campaign import Campaign
from bbo.errors import CampaignError
from bbo.ledger import QueryState
from bbo.steering import SteeredPrior
from oracles.calls import Incomplete
from oracles.errors import NotAccepted, Unanswered
from oracles.evaluation import Evaluation
from oracles.http import HttpOracle
from smc.priors.gaussian import GaussianPrior
from smc.sampler import SamplerConfig
from tests.oracles.conftest import send, service  # noqa: F401  a fixture

PRIOR = GaussianPrior(torch.tensor([1.0, -1.0]), std=1.0, n_steps=4)
METHOD = SteeredPrior(sampler=SamplerConfig(n_islands=4, n_particles=2))


class Scripted:
    """Answers with `script`, one entry a query; an error stands for a query without an answer."""

    name, design_shape, n_per_call, is_idempotent = "scripted", None, None, False

    def __init__(self, script):
        self.script = script
        self.keys = []

    def evaluate_keyed(self, designs, keys):
        self.keys.append(list(keys))
        answers = [self.script.pop(0) for _ in keys]
        if any(not isinstance(a, Evaluation) for a in answers):
            raise Incomplete(answers)
        return answers

    def evaluate(self, designs):
        raise AssertionError("a campaign has keys")


def opened(directory, oracle, **settings):
    settings = {"budget": 8, "batch_size": 4, "method": METHOD, **settings}
    return Campaign.open(directory / "run", prior=PRIOR, oracle=oracle, **settings)


def counts(campaign):
    told = campaign.ledger.counts()
    return told.done, told.failed, told.in_doubt, told.reserved, told.sent


ONE = Evaluation.of(1.0)


def test_unanswered_queries_are_in_doubt_and_the_answers_beside_them_are_kept(tmp_path):
    oracle = Scripted([ONE, Unanswered("broken line"), ONE, ONE] + [ONE] * 4)
    with opened(tmp_path, oracle) as campaign:
        campaign.run()
        assert counts(campaign) == (7, 0, 1, 0, 0)
    assert len({key for keys in oracle.keys for key in keys}) == 8  # none was asked twice


def test_a_call_without_any_answer_stops_the_campaign(tmp_path):
    with opened(tmp_path, Scripted([Unanswered("time is up")] * 4)) as campaign:
        with pytest.raises(CampaignError, match="was sent 4 designs and gave no answer: time is up"):
            campaign.run()
        assert counts(campaign) == (0, 0, 4, 0, 0)
    with opened(tmp_path, Scripted([ONE] * 4)) as campaign:
        campaign.run()
        assert counts(campaign) == (4, 0, 4, 0, 0)  # the budget of 8 is gone


def test_what_was_not_accepted_costs_nothing_and_comes_first_next_time(tmp_path):
    oracle = Scripted([ONE, NotAccepted("queue is full"), Unanswered("?"), NotAccepted("queue is full")])
    with opened(tmp_path, oracle) as campaign:
        with pytest.raises(CampaignError, match="did not accept 2 designs: queue is full"):
            campaign.run()
        assert counts(campaign) == (1, 0, 1, 2, 0)
        waiting = [q.key for q in campaign.ledger.queries({QueryState.RESERVED})]
        designs = campaign.archive.designs(campaign.ledger.queries({QueryState.RESERVED}))
    oracle = Scripted([ONE] * 6)
    with opened(tmp_path, oracle) as campaign:
        campaign.run()
        assert counts(campaign) == (7, 0, 1, 0, 0)
        again = [q for q in campaign.ledger.queries({QueryState.DONE}) if q.key in waiting]
        assert torch.equal(campaign.archive.designs(again), designs)
    assert oracle.keys[0][:2] == waiting


def test_an_oracle_out_of_reach_costs_nothing(tmp_path):
    with opened(tmp_path, HttpOracle("http://127.0.0.1:9/")) as campaign:
        with pytest.raises(CampaignError, match="did not accept 1 designs: cannot connect"):
            campaign.run()
        assert counts(campaign) == (0, 0, 0, 4, 0)


def test_a_service_that_forgets_to_answer_is_looked_up_and_charges_once(tmp_path, service):  # noqa: F811
    charged: dict[str, float] = {}
    sent: list[str] = []

    def behave(handler, body):
        key = handler.path.split("/")[-1]
        if body is None:
            found = charged.get(key)
            return send(handler, 200, {"unknown": True} if found is None else {"value": found})
        sent.append(body["key"])
        if len(sent) == 6:  # lost on the way: never charged, and nobody knows
            handler.close_connection = True
            return handler.connection.close()
        assert body["key"] not in charged
        charged[body["key"]] = -sum(x * x for x in body["design"])
        if len(sent) == 3:  # charged, and the line breaks
            handler.close_connection = True
            return handler.connection.close()
        return send(handler, 200, {"value": charged[body["key"]]})

    service.behave = behave
    oracle = HttpOracle(service.url, lookup_url=service.url + "/{key}")
    for _ in range(2):
        with (
            opened(tmp_path, oracle, in_doubt="lookup") as campaign,
            pytest.raises(CampaignError, match="gave no answer"),
        ):
            campaign.run()
    with opened(tmp_path, oracle, in_doubt="lookup") as campaign:
        campaign.run()
        assert counts(campaign) == (8, 0, 0, 0, 0)
        values = {q.key: q.evaluation.outcomes["value"] for q in campaign.ledger.queries({QueryState.DONE})}
    assert values == charged
    assert len(sent) == 9
