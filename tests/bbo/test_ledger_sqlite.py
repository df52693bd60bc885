"""What is true of the ledger's own SQLite file only: versions, disks, media, and who waits for whom."""

import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bbo.errors import CampaignBusyError, CampaignError, LedgerError
from bbo.ledger import Counts, Ledger, Proposal
from bbo.ledger.rules import RULES
from bbo.ledger.sqlite import NETWORK, file_system, refuse_network
from oracles.evaluation import Evaluation

ROOT = Path(__file__).resolve().parents[2]
OLD = Path(__file__).with_name("ledger_schema_1.sql")
"""A ledger as the first version of this package wrote it: two queries answered, two in doubt, one sent."""


def create(directory: Path, budget: int = 12) -> Ledger:
    return Ledger.create(directory, name="test", budget=budget, config={})


def reserve(ledger: Ledger, n: int, number: int = 0) -> list[int]:
    blob = ledger.blobs.put_bytes(b"designs")
    return [query.id for query in ledger.reserve(number, 7, [Proposal(row=i) for i in range(n)], blob, {})]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with create(tmp_path).drive() as ledger:
        yield ledger


@pytest.fixture
def raw(ledger: Ledger) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(ledger.directory / "ledger.sqlite")
    yield connection
    connection.close()


# ---------------------------------------------------------------- versions
@pytest.fixture
def old(tmp_path: Path) -> Path:
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as connection:
        connection.executescript(OLD.read_text())
    return tmp_path


class TestVersions:
    def test_an_older_ledger_is_brought_up_to_date_with_all_it_knows(self, old: Path) -> None:
        with Ledger.open(old) as ledger:
            queries = ledger.queries()
            assert [query.state for query in queries] == ["done", "failed", "in_doubt", "in_doubt", "sent"]
            assert queries[0].evaluation == Evaluation({"value": 1.5, "drag": 0.25}, noise_std={"value": 0.1})
            assert queries[1].evaluation == Evaluation.failed("it's crossed")
            assert not any(query.is_given or query.is_asked for query in queries)
            assert [event.kind for event in ledger.events()] == ["driven", "in_doubt", "migrated"]
            (record,) = ledger.rounds()
            assert record.fence is None
            assert [artifact.sha256 for artifact in ledger.artifacts()] == [record.artifact]
        assert (old / "ledger.schema1.sqlite").is_file()
        with Ledger.open(old) as ledger:
            assert [event.kind for event in ledger.events()].count("migrated") == 1

    def test_what_holds_in_a_new_ledger_holds_in_an_upgraded_one(self, old: Path, tmp_path: Path) -> None:
        Ledger.open(old).close()
        create(tmp_path / "new").close()
        described = []
        for directory in (old, tmp_path / "new"):
            with closing(sqlite3.connect(directory / "ledger.sqlite")) as connection:
                names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
                columns = {
                    name: sorted(row[1:] for row in connection.execute(f"PRAGMA table_info({name})"))
                    for (name,) in names
                }
                rules = connection.execute(
                    "SELECT name, sql FROM sqlite_master WHERE type IN ('trigger', 'index')"
                    " AND sql IS NOT NULL ORDER BY name"
                ).fetchall()
                described.append((columns, rules))
        assert [column[:3] for column in described[0][0]["queries"]] == [
            column[:3] for column in described[1][0]["queries"]
        ]
        assert described[0][1] == described[1][1]
        assert {rule.name for rule in RULES} < {name for name, _ in described[0][1]}
        with Ledger.open(old).drive() as ledger:
            assert [query.id for query in ledger.doubt_sent()] == [5]
            ledger.abandon([3])
            ledger.tell({4: Evaluation.of(1.0)})
            with closing(sqlite3.connect(old / "ledger.sqlite")) as person:
                with pytest.raises(sqlite3.IntegrityError, match="never deleted"):
                    person.execute("DELETE FROM queries")
                with pytest.raises(sqlite3.IntegrityError, match="illegal transition"):
                    person.execute("UPDATE queries SET state = 'reserved' WHERE id = 1")

    def test_a_migration_that_is_killed_leaves_the_old_ledger(
        self, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("bbo.ledger.migrations.create_rules", broken)
            with pytest.raises(KeyboardInterrupt):
                Ledger.open(old)
        with closing(sqlite3.connect(old / "ledger.sqlite")) as connection:
            assert connection.execute("SELECT schema_version FROM meta").fetchall() == [(1,)]
        with Ledger.open(old) as ledger:
            assert len(ledger.queries()) == 5

    def test_an_old_ledger_that_cannot_be_written_says_so(
        self, old: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("bbo.ledger.sqlite._is_writable", lambda path: False)
        with pytest.raises(LedgerError, match="has schema 1 and cannot be written; copy the campaign"):
            Ledger.open(old)

    def test_nobody_migrates_under_a_driver(self, old: Path) -> None:
        import fcntl

        with (old / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(CampaignBusyError):
                Ledger.open(old)

    @pytest.mark.parametrize("content", [b"", b"not a database, but long enough to look" * 9])
    def test_what_is_no_ledger_is_refused_in_one_line(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "ledger.sqlite").write_bytes(content)
        with pytest.raises(LedgerError, match=r"SQLite cannot read .*ledger.sqlite") as caught:
            Ledger.open(tmp_path)
        assert "\n" not in str(caught.value)

    def test_a_newer_schema_is_refused_with_both_versions(
        self, ledger: Ledger, raw: sqlite3.Connection
    ) -> None:
        raw.execute("UPDATE meta SET schema_version = 99")
        raw.commit()
        with pytest.raises(LedgerError, match=r"newer bbo: expected schema 2, got 99; install"):
            Ledger.open(ledger.directory)


# ---------------------------------------------------------------- disks and media
class TestDisks:
    def test_every_commit_is_synced_before_it_returns(self, ledger: Ledger) -> None:
        with ledger._engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1

    def test_a_full_disk_is_one_clear_line_and_loses_nothing(self, ledger: Ledger) -> None:
        reserve(ledger, 1)
        with ledger._engine.connect() as connection:
            n_pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {n_pages}")
        before = ledger.queries()
        with pytest.raises(
            LedgerError, match=r"SQLite cannot write .*: database or disk is full; see to .*disk"
        ):
            ledger.reserve(1, 7, [Proposal(0, provenance={"x": "x" * 100_000})], before[0].artifact, {})
        assert ledger.queries() == before
        assert len(ledger.rounds()) == 1
        ledger.send([before[0].id])

    @pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "lustre"])
    def test_a_network_file_system_is_refused_with_the_reason(self, tmp_path: Path, kind: str) -> None:
        mounts = tmp_path / "mounts"
        shared = tmp_path / "sha red"
        shared.mkdir()
        escaped = str(shared).replace(" ", "\\040")
        mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {escaped} {kind} rw 0 0\n")
        assert kind in NETWORK
        with pytest.raises(CampaignError, match=f"network file system .{kind}.*write-ahead log.*PostgreSQL"):
            refuse_network(shared / "run", mounts)
        refuse_network(tmp_path / "run", mounts)
        assert file_system(tmp_path, mounts) == "ext4"

    def test_where_nobody_can_tell_nothing_is_refused(self, tmp_path: Path) -> None:
        refuse_network(tmp_path, tmp_path / "no such file")
        assert file_system(tmp_path) not in {None, *NETWORK}

    def test_creating_and_opening_ask_for_the_file_system(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create(tmp_path / "before").close()
        monkeypatch.setattr("bbo.ledger.sqlite.file_system", lambda directory, mounts: "nfs")
        for act in (lambda: create(tmp_path / "new"), lambda: Ledger.open(tmp_path / "before")):
            with pytest.raises(CampaignError, match="network file system"):
                act()
        assert not (tmp_path / "new" / "ledger.sqlite").exists()

    def test_a_directory_that_cannot_be_written_can_be_looked_at(self) -> None:
        """In a process that is not root, whom no permission stops."""
        with tempfile.TemporaryDirectory() as name:
            open_to_all = Path(name)
            open_to_all.chmod(0o755)
            self.look_from_outside(open_to_all)

    def look_from_outside(self, folder: Path) -> None:
        home = folder / "run 1? #2 %20"
        with create(home).drive() as ledger:
            reserve(ledger, 3)
        for path in (home, home / "ledger.sqlite", home / "lock"):
            path.chmod(path.stat().st_mode & 0o555)
        code = (
            "import os, sys; from pathlib import Path; from bbo.ledger import Ledger\n"
            "from bbo.errors import BboError\n"
            "Ledger.create(Path(sys.argv[2]), name='x', budget=1, config={}).close()  # imports what it needs\n"
            "os.getuid() or os.setuid(65534)\n"
            "ledger = Ledger.open(Path(sys.argv[1])); print(ledger.counts().reserved)\n"
            "try: ledger.drive()\n"
            "except BboError as error: print(error)"
        )
        command = [sys.executable, "-c", code, str(home), str(folder / "warm")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0] == "3"
        assert "cannot open the lock" in done.stdout.splitlines()[1]
        assert sorted(path.name for path in home.iterdir()) == ["blobs", "ledger.sqlite", "lock"]
        home.chmod(0o755)

    def test_a_copy_is_a_campaign_of_its_own(
        self, ledger: Ledger, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        reserve(ledger, 2)
        ledger.close()
        copy = tmp_path_factory.mktemp("elsewhere") / "run"
        shutil.copytree(ledger.directory, copy)
        with Ledger.open(copy).drive() as other:
            assert other.counts() == Counts(reserved=2)


# ---------------------------------------------------------------- who waits for whom, and how long
class TestTogether:
    def test_reads_do_not_wait_for_a_writer(self, ledger: Ledger, raw: sqlite3.Connection) -> None:
        reserve(ledger, 1)
        raw.execute("BEGIN IMMEDIATE")
        with Ledger.open(ledger.directory) as reader:
            started = time.perf_counter()
            assert reader.counts() == Counts(reserved=1)
            assert time.perf_counter() - started < 2, "a writer waits ten seconds here"

    def test_a_transaction_sees_the_budget_that_it_spends(
        self, ledger: Ledger, raw: sqlite3.Connection
    ) -> None:
        """Two that read before they lock would both find room: a writer locks first."""
        raw.execute("PRAGMA busy_timeout = 0")
        with ledger._write(), pytest.raises(sqlite3.OperationalError, match="locked"):
            raw.execute("BEGIN IMMEDIATE")

    def test_a_group_may_be_larger_than_a_statement(self, tmp_path: Path) -> None:
        with create(tmp_path, 1200).drive() as ledger:
            with ledger._engine.connect() as connection:  # the least that SQLite is ever built with
                driver = connection.connection.driver_connection
                driver.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)
            ledger.send(reserve(ledger, 1200))
            assert len(ledger.doubt_sent()) == ledger.counts().in_doubt == 1200

    def test_is_quick_with_many_queries(self, tmp_path: Path) -> None:
        n = 20_000
        with create(tmp_path, n).drive() as ledger:
            ids = reserve(ledger, n)
            ledger.send(ids)
            ledger.tell({query: Evaluation.of(float(query)) for query in ids[:-1]})
        started = time.perf_counter()
        with Ledger.open(tmp_path) as ledger:
            opened = time.perf_counter() - started
            counts = ledger.counts()
            counted = time.perf_counter() - started - opened
            plan = (
                "EXPLAIN QUERY PLAN SELECT state, count(*) FROM queries"
                " WHERE campaign_id = 1 GROUP BY is_given, state"
            )
            with ledger._engine.connect() as connection:
                assert "COVERING INDEX queries_by_state" in connection.exec_driver_sql(plan).one()[3]
        assert counts == Counts(sent=1, done=n - 1)
        assert (counts.n, counts.spent) == (n, n - 1)
        assert opened < 0.4, "2 s for 100,000"
        assert counted < 0.2, "1 s for 100,000"
