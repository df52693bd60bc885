"""Whole campaigns whose ledger is in PostgreSQL, when BBO_TEST_POSTGRES_URL is set (CONTRIBUTING.md)."""

import os
import shutil

import pytest

from bbo.errors import CampaignBusyError, CampaignError, ConfigMismatchError, StorageError
from bbo.ledger import Counts, Ledger
from bbo.ledger.audit import faults
from bbo.report import write_report
from tests.bbo.test_cli import bbo
from tests.bbo.test_recovery import Service, account, opened

URL = os.environ.get("BBO_TEST_POSTGRES_URL", "")
pytestmark = pytest.mark.skipif(not URL, reason="BBO_TEST_POSTGRES_URL is not set")


def test_a_campaign_is_the_same_in_either_database_after_a_crash_too(tmp_path):
    with opened(tmp_path / "sqlite", Service()) as campaign:
        campaign.run()
        whole = account(campaign)
    service = Service(dies_at=5)
    with pytest.raises(KeyboardInterrupt), opened(tmp_path / "run", service, database=URL) as campaign:
        campaign.run()
    with opened(tmp_path / "run", service, database=URL) as campaign:
        campaign.run()
        assert account(campaign) == whole
        assert list(faults(campaign.ledger)) == []
    assert len(service.answers) == len(service.keys) == 8
    assert not (tmp_path / "run" / "ledger.sqlite").exists()


def test_many_campaigns_in_one_database_know_nothing_of_each_other(tmp_path):
    for name in ("a", "b"):
        with opened(tmp_path / name, Service(), database=URL, budget=4) as campaign:
            campaign.run()
    with Ledger.open(tmp_path / "a", URL) as a, Ledger.open(tmp_path / "b", URL) as b:
        assert a.counts() == b.counts() == Counts(done=4)
        assert {query.id for query in a.queries()}.isdisjoint(query.id for query in b.queries())
        assert a.uid != b.uid


def test_two_machines_that_share_the_database_are_one_driver_at_a_time(tmp_path):
    with opened(tmp_path / "here", Service(), database=URL):
        there = shutil.copytree(tmp_path / "here", tmp_path / "there")
        with pytest.raises(CampaignBusyError, match="driven from another machine or directory"):
            opened(there, Service(), database=URL)
    opened(there, Service(), database=URL).close()


def test_where_the_ledger_is_only_the_user_says(tmp_path):
    opened(tmp_path / "run", Service(), database=URL).close()
    assert (tmp_path / "run" / "ledger.postgresql").read_text().strip().isalnum()
    with pytest.raises(CampaignError, match="is in a PostgreSQL database; name it by setting BBO_DATABASE"):
        Ledger.open(tmp_path / "run")
    status = bbo("status", tmp_path / "run", BBO_DATABASE=URL)
    assert status.returncode == 0, status.stderr
    assert "0 spent of 8" in status.stdout
    assert write_report(tmp_path / "run", database=URL).stat().st_size > 10_000
    opened(tmp_path / "other", Service()).close()
    with pytest.raises(CampaignError, match=r"is the file ledger.sqlite there, not a PostgreSQL database"):
        opened(tmp_path / "other", Service(), database=URL)
    assert bbo("status", tmp_path / "other", BBO_DATABASE=URL).returncode == 0
    with pytest.raises(ConfigMismatchError, match="seed"):
        opened(tmp_path / "run", Service(), database=URL, seed=3)


def test_a_server_that_is_not_there_is_one_line_without_the_password(tmp_path):
    with pytest.raises(StorageError, match=r"PostgreSQL cannot read db on 127.0.0.1: .*refused") as refused:
        opened(tmp_path / "run", Service(), database="postgresql://me:hunter2@127.0.0.1:1/db")
    assert "\n" not in str(refused.value)
    assert "hunter2" not in str(refused.value)
