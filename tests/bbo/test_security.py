"""What a campaign that somebody sent can do (nothing), and where secrets go (nowhere)."""

import ast
import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from bbo.campaign import Campaign
from bbo.config.describe import describe
from bbo.config.plan import load_plan
from bbo.config.secrets import Secret, redacted, revealed, secrets_of
from bbo.errors import ConfigError
from bbo.exchange.export import export_queries
from bbo.ledger import Ledger
from bbo.report import write_report
from oracles.evaluation import Evaluation
from smc.priors.gaussian import GaussianPrior
from tests.bbo.test_cli import bbo

ROOT = Path(__file__).parents[2]
SECRET = "hunter2-and-more"
PRIOR = GaussianPrior(torch.zeros(2), n_steps=6)
TRAP = "import pathlib; pathlib.Path(__file__).with_name('sprung').touch()\ndef oracle(design): return 1.0\n"


@dataclass(frozen=True)
class Billed:
    """An oracle with a password, which it repeats in what it answers."""

    token: str
    headers: dict = field(default_factory=dict)
    name: str = "billed"
    design_shape: tuple | None = None
    n_per_call: int | None = None
    is_idempotent: bool = False

    def evaluate(self, designs):
        good = Evaluation(
            {"value": 1.0}, metadata={"url": f"https://x/?key={self.token}", "tries": [str(self.token)]}
        )
        return [good, Evaluation.failed(f"401 for {self.headers['Authorization']}")] * (len(designs) // 2)


class TestSecrets:
    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch):
        monkeypatch.setenv("LAB_TOKEN", SECRET)

    def test_it_is_what_the_environment_says_to_whoever_uses_it(self):
        secret = revealed("Bearer ${env:LAB_TOKEN}!")
        assert secret == f"Bearer {SECRET}!"
        assert repr(secret) == "'Bearer ${env:LAB_TOKEN}!'"
        assert describe({"a": [secret]}) == {"a": ["Bearer ${env:LAB_TOKEN}!"]}
        assert type(revealed("$HOME {env:X} ${LAB_TOKEN}")) is str

    def test_a_variable_that_is_not_set_is_named(self):
        with pytest.raises(ConfigError, match="needs the environment variable LAB_TOKNE, which is not set"):
            revealed("${env:LAB_TOKNE}")

    def test_no_short_word_is_taken_for_a_secret(self, monkeypatch):
        monkeypatch.setenv("SHORT", "a")
        answer = Evaluation.failed("a banana")
        assert redacted(answer, [revealed("${env:SHORT}")]) == answer

    def test_it_is_neither_in_the_ledger_nor_in_what_is_written_from_it(self, tmp_path):
        oracle = Billed(revealed("${env:LAB_TOKEN}"), {"Authorization": revealed("Bearer ${env:LAB_TOKEN}")})
        assert len(list(secrets_of(oracle))) == 2
        with Campaign.open(tmp_path / "run", prior=PRIOR, oracle=oracle, budget=4, batch_size=4) as campaign:
            campaign.run()
            first, second, *_ = campaign.ledger.queries()
            assert second.evaluation.error == "401 for Bearer ${env:LAB_TOKEN}"
            assert first.evaluation.metadata == {
                "url": "https://x/?key=${env:LAB_TOKEN}",
                "tries": ["${env:LAB_TOKEN}"],
            }
            export_queries(campaign.ledger, tmp_path / "run" / "all.csv")
        write_report(tmp_path / "run")
        assert "${env:LAB_TOKEN}" in (tmp_path / "run" / "report.html").read_text()
        for path in (path for path in (tmp_path / "run").rglob("*") if path.is_file()):
            assert SECRET.encode() not in path.read_bytes(), path

    def test_another_value_of_the_variable_is_the_same_campaign(self, tmp_path, monkeypatch):
        for value in ("first-password", "second-password"):
            monkeypatch.setenv("LAB_TOKEN", value)
            oracle = Billed(revealed("${env:LAB_TOKEN}"))
            assert isinstance(oracle.token, Secret)
            Campaign.open(tmp_path / "run", prior=PRIOR, oracle=oracle, budget=4).close()

    def test_campaign_files_have_them_everywhere(self, tmp_path):
        (tmp_path / "mine.py").write_text("def oracle(design): return 1.0\n")
        (tmp_path / "mine.yaml").write_text(
            f"campaign: {{directory: '{tmp_path}/${{env:LAB_TOKEN}}', budget: 4}}\n"
            f"prior: {{type: denoiser, path: '{ROOT}/experiments/problems/airfoil_prior.safetensors'}}\n"
            "oracle: {type: function, function: 'mine.py:oracle'}\n"
        )
        assert load_plan(tmp_path / "mine.yaml").directory == tmp_path / SECRET
        with pytest.raises(ConfigError, match="environment variable NOPE"):
            load_plan(tmp_path / "mine.yaml", ["campaign.database=${env:NOPE}"])

    def test_a_database_url_is_never_repeated(self, tmp_path):
        url = f"mysql://me:{SECRET}@host/db"
        with pytest.raises(ConfigError, match="a database is written postgresql://") as refused:
            Campaign.open(tmp_path / "run", prior=PRIOR, budget=4, database=url)
        assert SECRET not in str(refused.value)


class TestACampaignThatSomebodySent:
    @pytest.fixture
    def sent(self, tmp_path):
        """A campaign whose config names code beside it, and whose folder is full of code."""
        directory = tmp_path / "run"
        with Campaign.open(directory, prior=PRIOR, oracle=lambda design: 1.0, budget=4) as campaign:
            campaign.run()
        for name in ("trap.py", "sitecustomize.py", "conftest.py", "torch.py", "bbo.py", "sqlite3.py"):
            (directory / name).write_text(TRAP)
        config = {
            "campaign": {"objective": "value", "batch_size": 4, "seed": 0},
            "prior": {"type": "trap:oracle", "design_shape": [2], "fingerprint": "trap.py:oracle"},
            "oracle": {
                "type": "function",
                "function": f"{directory}/trap.py:oracle",
                "name": "trap.py:oracle",
            },
            "method": {"type": f"{directory}/trap.py:oracle"},
        }
        with closing(sqlite3.connect(directory / "ledger.sqlite")) as connection:
            connection.execute("UPDATE campaigns SET config = ?", (json.dumps(config),))
            connection.commit()
        return directory

    def test_looking_at_it_runs_nothing(self, sent, tmp_path):
        for command in (
            ["status", sent],
            ["best", sent],
            ["report", sent],
            ["show", sent, 1],
            ["verify", sent],
            ["export", sent, "--out", tmp_path / "all.csv"],
            ["pending", sent],
        ):
            done = bbo(*command, cwd=sent.parent)
            assert done.returncode == 0, done.stderr
            assert not list(sent.parent.rglob("sprung")), command

    def test_a_pointer_to_a_database_leads_nowhere_by_itself(self, tmp_path):
        (tmp_path / "ledger.postgresql").write_text("postgresql://evil.example/${env:HOME}\n")
        done = bbo("status", tmp_path)
        assert done.returncode == 2
        assert "BBO_DATABASE" in done.stderr
        assert "evil" not in done.stderr

    def test_what_an_oracle_says_is_text_in_reports_and_tables(self, tmp_path):
        said = '=HYPERLINK("http://evil") <script>alert(1)</script>'
        answers = iter([1.0, Evaluation.failed(said)])
        with Campaign.open(
            tmp_path / "run", prior=PRIOR, oracle=lambda design: next(answers), budget=2, batch_size=2
        ) as campaign:
            campaign.run()
            export_queries(campaign.ledger, tmp_path / "all.csv")
        page = write_report(tmp_path / "run").read_text()
        assert "<script>alert" not in page
        assert f"'{said}".replace('"', '""') in (tmp_path / "all.csv").read_text()

    def test_a_blob_is_no_path(self, tmp_path):
        with Campaign.open(
            tmp_path / "run", prior=PRIOR, oracle=lambda d: 1.0, budget=2, batch_size=2
        ) as campaign:
            campaign.run()
        with closing(sqlite3.connect(tmp_path / "run" / "ledger.sqlite")) as connection:
            connection.execute("DROP TRIGGER query_is_fixed")
            connection.execute("UPDATE queries SET artifact = '../../../../etc/passwd'")
            connection.commit()
        done = bbo("verify", tmp_path / "run")
        assert done.returncode == 1
        assert "64 hexadecimal digits" in done.stdout


UNPICKLING = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}


def dangers(tree):
    """Give what in a module's syntax could run code that lies in a file: unpickling, eval, exec, unsafe loaders."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names) if UNPICKLING & {alias.name.split(".")[0] for alias in names}:
                yield node
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in UNPICKLING:
                yield node
            case ast.Call(func=ast.Name(id="eval" | "exec")):
                yield node
            case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr="load"), keywords=settings):
                if not any(s.arg == "weights_only" and ast.unparse(s.value) == "True" for s in settings):
                    yield node
            case ast.Call(func=ast.Attribute(attr="unsafe_load" | "full_load" | "read_pickle")):
                yield node
            case ast.keyword(arg="allow_pickle" | "trust_remote_code", value=ast.Constant(value=True)):
                yield node
            case ast.keyword(arg="weights_only", value=ast.Constant(value=False)):
                yield node


def test_nothing_is_unpickled_anywhere():
    rooms = ("bbo", "smc", "surrogate", "oracles", "experiments")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 50
    found = [f"{path}:{node.lineno}" for path in files for node in dangers(ast.parse(path.read_text()))]
    assert found == []
    for code in (
        "import pickle",
        "from dill import x",
        "eval(x)",
        "torch.load(f)",
        "torch.load(f, weights_only=careful)",
        "np.load(f, allow_pickle=True)",
    ):
        assert list(dangers(ast.parse(code))), code
    assert not list(dangers(ast.parse("torch.load(f, weights_only=True)")))


def test_designs_stay_what_they_were(tmp_path):
    with Campaign.open(tmp_path, prior=PRIOR, oracle=lambda d: 1.0, budget=2, batch_size=2) as campaign:
        campaign.run()
        designs = campaign.archive.designs(campaign.ledger.queries())
    with Ledger.open(tmp_path) as ledger:
        (record,) = ledger.rounds()
        assert np.array_equal(ledger.blobs.get_tensors(record.artifact)["design"], designs)
