"""Ray: the same bits on any number of workers, whatever dies; oracle calls that nobody repeats; nothing left behind.

One cluster, of a head and nodes that come and go, serves all tests of this file.
"""

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from bbo.campaign import Campaign
from bbo.config import user_code
from bbo.config.secrets import revealed
from bbo.devices import moved
from bbo.errors import CampaignError, ConfigError, ExecutorError
from bbo.executor import LocalExecutor
from bbo.ledger import QueryState
from bbo.places import Local, Ray
from bbo.steering import SteeredPrior
from oracles.callables import FunctionOracle
from oracles.calls import call
from oracles.errors import NotAccepted, Unanswered
from oracles.evaluation import Evaluation
from oracles.wrappers import RateLimited
from smc.priors.denoiser import Denoiser
from smc.priors.gaussian import GaussianPrior
from smc.sampler import SamplerConfig
from smc.tempering import Constant
from surrogate.acquisition import UCB
from surrogate.features import Flatten, Standardizer
from surrogate.gp import ExactGP
from tests.contracts.executor_contract import PRIOR, SHARDS, ExecutorContract, equal, potential

pytestmark = pytest.mark.ray

QUICK_TO_NOTICE = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}
WANTED = LocalExecutor(PRIOR, Flatten()).sample(potential(), SHARDS)


@pytest.fixture(scope="module")
def cluster():
    """A cluster that this process has joined; checked to be gone afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 8, "include_dashboard": False, "_system_config": QUICK_TO_NOTICE}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        session = ray._private.worker._global_node.get_session_dir_path()
        user_code.LOADED.add(__name__)  # nor can workers import this file
        yield cluster
        user_code.LOADED.discard(__name__)
        ray.shutdown()
        cluster.shutdown()
    assert eventually(lambda: not processes_of(session)), processes_of(session)


def processes_of(word):
    """Return the command lines that hold a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        found += [command] if word in command else []
    return found


def eventually(holds, seconds=60.0):  # a worker loads torch, on a machine that may be busy
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


@pytest.fixture
def started(cluster):
    """Start executors that are closed at the end."""
    running = []

    def start(prior=PRIOR, **settings):
        running.append(Ray(**{"n_workers": 2, "cpus_per_worker": 0.5, **settings}).start(prior))
        return running[-1]

    yield start
    for executor in running:
        executor.close()


class OnWorkers(ExecutorContract):
    n_workers = 1

    @pytest.fixture(scope="class")
    @classmethod
    def executor(cls, cluster):
        executor = Ray(n_workers=cls.n_workers).start(PRIOR)
        yield executor
        executor.close()


class TestOneWorker(OnWorkers):
    n_workers = 1


class TestTwoWorkers(OnWorkers):
    n_workers = 2


class TestFourWorkers(OnWorkers):
    n_workers = 4


# ------------------------------------------------------------------- deaths
@dataclass(frozen=True, eq=False)
class Mortal(Denoiser):
    """A prior that kills its process when there is a file with the order to, once for each."""

    orders: Path = Path()

    def denoise(self, x, t):
        try:
            self.orders.rename(self.orders.with_suffix(f".{os.getpid()}"))  # one process gets it
        except FileNotFoundError:
            return super().denoise(x, t)
        return os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, eq=False)
class Deadly(Denoiser):
    def denoise(self, x, t):
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, eq=False)
class Slow(Denoiser):
    """A prior that takes its time, and far more of it where there is a file that says so."""

    orders: Path = Path("nobody")
    seconds: float = 0.01

    def denoise(self, x, t):
        try:
            self.orders.rename(self.orders.with_suffix(f".{os.getpid()}"))
        except FileNotFoundError:
            time.sleep(self.seconds)
        else:
            time.sleep(60)
        return super().denoise(x, t)


class Odd(Exception):
    """An exception that cannot be made again from its message."""

    def __init__(self, n, of):
        super().__init__(f"{n} of {of}")


@dataclass(frozen=True, eq=False)
class Raising(Denoiser):
    def denoise(self, x, t):
        raise Odd(7, 8)


@dataclass(frozen=True, eq=False)
class Counting(Denoiser):
    def denoise(self, x, t):
        raise ValueError(f"{torch.get_num_threads()} threads")


def _is_mended(executor):
    """Whether workers that could not get ready have been replaced by some that can."""
    try:
        return equal(executor.sample(potential(), SHARDS[:1])[0], WANTED[0])
    except ExecutorError:
        return False


def like(kind, **more):
    """Return PRIOR as one of another kind."""
    return kind(PRIOR.network, PRIOR.mean, PRIOR.std, PRIOR.n_steps, PRIOR.eta, PRIOR.spacing, **more)


class TestDeaths:
    def test_a_killed_worker_is_replaced_and_its_shard_sampled_again(self, started, tmp_path):
        orders = tmp_path / "die"
        executor = started(like(Mortal, orders=orders))
        executor.sample(potential(), SHARDS[:2])
        orders.touch()
        found = executor.sample(potential(), SHARDS)
        assert not orders.exists()
        assert all(equal(*pair) for pair in zip(found, WANTED, strict=True))
        assert eventually(lambda: executor.sample(potential(), SHARDS[:1]) and executor.n_workers == 2)

    def test_one_that_dies_again_and_again_ends_in_a_clear_error(self, started):
        executor = started(like(Deadly))
        with pytest.raises(ExecutorError, match="3 workers were lost over the same work, the last") as told:
            executor.sample(potential(), SHARDS)
        assert "Worker unexpectedly exits" in str(told.value)
        assert "run the same command again" in str(told.value)
        with pytest.raises(ExecutorError, match="3 workers were lost over the same work"):  # and no other end
            executor.sample(potential(), SHARDS[:1])

    def test_a_node_that_is_removed_takes_no_shard_with_it(self, started, cluster):
        node = cluster.add_node(num_cpus=6)
        executor = started(like(Slow, seconds=0.05), n_workers=4, cpus_per_worker=3.0)  # two fit the head
        assert eventually(lambda: executor.sample(None, PLAIN[:1]) and executor.n_workers == 4)
        many = [replace(shard, seed=k) for k, shard in enumerate(SHARDS * 4)]
        removal = threading.Timer(0.3, cluster.remove_node, (node,))
        removal.start()
        found = executor.sample(potential(), many)
        removal.join()
        wanted = LocalExecutor(PRIOR, Flatten()).sample(potential(), many)
        assert all(equal(*pair) for pair in zip(found, wanted, strict=True))

    def test_a_shard_that_one_worker_is_slow_with_is_begun_elsewhere(self, started, tmp_path):
        orders = tmp_path / "dawdle"
        executor = started(like(Slow, orders=orders))
        executor.sample(potential(), SHARDS)
        orders.touch()
        began = time.monotonic()
        found = executor.sample(potential(), SHARDS)
        assert not orders.exists()
        assert time.monotonic() - began < 30
        assert all(equal(*pair) for pair in zip(found, WANTED, strict=True))


PLAIN = [replace(shard, config=replace(shard.config, guidance=None)) for shard in SHARDS]


@dataclass(frozen=True)
class Locked(UCB):
    lock: object = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Locking(Constant):
    lock: object = field(default_factory=threading.Lock)


class TestWork:
    """What a crew does first, and what it takes for slow."""

    def work(self, *costs):
        from bbo.ray_executor.crew import Job, _Work

        return _Work([Job("sample", (), cost) for cost in costs])

    def test_the_longest_comes_first(self, cluster):
        assert list(self.work(1, 3, 2, 3).waiting) == [1, 3, 2, 0]

    def test_twice_the_median_is_slow(self, cluster):
        work = self.work(1, 1, 1)
        assert not work.is_slow(1e9)
        for place, seconds in enumerate((1.0, 2.0, 9.0)):
            work.finish(place, None, seconds)
        assert not work.is_slow(4.0)
        assert work.is_slow(4.1)


class TestWorkers:
    def test_a_prior_can_be_loaded_where_the_worker_is(self, started, tmp_path):
        path = tmp_path / "prior.safetensors"
        PRIOR.save(path)
        executor = started(load_prior=lambda: Denoiser.load(path, n_steps=PRIOR.n_steps))
        (shard,) = executor.sample(potential(), SHARDS[:1])
        assert equal(shard, WANTED[0])

    def test_another_prior_than_the_drivers_is_refused(self, started, tmp_path):
        path = tmp_path / "prior.safetensors"
        PRIOR.save(path)
        executor = started(load_prior=lambda: Denoiser.load(path, n_steps=4))
        with pytest.raises(ExecutorError, match=r"a worker cannot get ready: .* has another prior"):
            executor.sample(potential(), SHARDS)

    def test_what_fails_while_a_prior_is_loaded_is_told(self, started, tmp_path):
        executor = started(
            load_prior=lambda: Denoiser.load(tmp_path / "late.safetensors", n_steps=PRIOR.n_steps)
        )
        with pytest.raises(ExecutorError, match=r"a worker cannot get ready: no prior at .*late"):
            executor.sample(potential(), SHARDS)
        PRIOR.save(tmp_path / "late.safetensors")
        assert eventually(lambda: _is_mended(executor))

    def test_what_a_prior_raises_comes_back_whatever_it_is(self, started):
        executor = started(like(Raising))
        with pytest.raises(ExecutorError, match=r"^Odd: 7 of 8$"):
            executor.sample(potential(), SHARDS)
        with pytest.raises(ExecutorError, match=r"^Odd: 7 of 8$"):
            executor.sample(potential(), SHARDS[:1])

    def test_a_worker_has_as_many_threads_as_cpus(self, started):
        executor = started(like(Counting), cpus_per_worker=2.0)
        with pytest.raises(ExecutorError, match=r"^ValueError: 2 threads$"):
            executor.sample(potential(), SHARDS[:1])

    def test_closing_twice_leaves_the_others_alone(self, started):
        one, other = started(), started()
        one.close()
        one.close()
        assert equal(other.sample(potential(), SHARDS[:1])[0], WANTED[0])

    def test_a_prior_that_no_gpu_can_have_is_refused(self):
        with pytest.raises(ExecutorError, match="GaussianPrior has no method to"):
            moved(GaussianPrior(torch.zeros(2), 1.0, 4), "cuda")

    def test_workers_wait_for_cpus_and_say_what_there_is(self, started, monkeypatch):
        monkeypatch.setattr("bbo.ray_executor.crew.START_LIMIT_S", 1.0)
        executor = started(cpus_per_worker=64.0, n_workers=1)
        with pytest.raises(
            ExecutorError, match=r"no worker could be started within 1 s; the cluster has {'CPU': 8"
        ):
            executor.sample(potential(), SHARDS)

    def test_what_cannot_travel_is_refused_by_name(self, started):
        executor = started()
        with pytest.raises(ExecutorError, match="the belief of this round cannot be sent to another process"):
            executor.sample(replace(potential(), acquisition=Locked()), SHARDS)
        locked = [replace(shard, config=replace(shard.config, tempering=Locking())) for shard in SHARDS]
        with pytest.raises(ExecutorError, match="what a worker is to do cannot be sent to another process"):
            executor.sample(potential(), locked)

    def test_other_versions_are_refused(self, started):
        from bbo.worker import Equipment, Worker

        equipment = Equipment(1, "cpu", None, PRIOR.fingerprint(), {"python": "2.7"})
        with pytest.raises(
            ExecutorError, match=r"has python 3.* and the driver 2\.7; install the same versions"
        ):
            Worker().load(PRIOR, Flatten(), equipment)


# ------------------------------------------------------------------- oracles
@pytest.fixture
def oracle(cluster, tmp_path):
    """Return a function as an oracle that is called by tasks."""
    executor = Ray(n_workers=1).start(PRIOR)
    yield lambda function, **settings: executor.calling(FunctionOracle(function, **settings))
    executor.close()


def _one(design):
    return 1.0


DESIGNS = torch.arange(4.0)[:, None]


class TestOracles:
    def test_answers_come_back_as_they_were(self, oracle):
        def answer(design):
            if design[0] == 1:
                raise ValueError("too thin")
            if design[0] == 2:
                raise NotAccepted("closed on Sundays")
            return Evaluation({"value": float(design[0])}, cost=2.5, metadata={"pid": os.getpid()})

        remote = oracle(answer)
        told = call(remote, DESIGNS, list("abcd"))
        assert told[0].outcomes == {"value": 0.0}
        assert told[0].cost == 2.5
        assert told[0].metadata["pid"] != os.getpid()
        assert told[1].error == "ValueError: too thin"
        assert isinstance(told[2], NotAccepted)
        assert str(told[2]) == "closed on Sundays"
        assert told[3].outcomes == {"value": 3.0}

    def test_a_lost_worker_is_in_doubt_and_never_asked_again(self, oracle, tmp_path):
        def answer(design):
            (tmp_path / f"{design[0]}-{time.time_ns()}").touch()
            if design[0] == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return 1.0

        told = call(oracle(answer), DESIGNS)
        assert [isinstance(answer, Unanswered) for answer in told] == [False, True, False, False]
        assert "was lost" in str(told[1])
        assert "may have been charged" in str(told[1])
        time.sleep(1.0)
        assert len(list(tmp_path.glob("1.0-*"))) == 1

    def test_what_a_worker_cannot_build_was_never_accepted(self, oracle):
        class Unbuildable:
            def __call__(self, design):
                return 1.0

            def __reduce__(self):
                return (int, ("no number",))

        told = call(oracle(Unbuildable()), DESIGNS[:1])
        assert isinstance(told[0], NotAccepted)
        assert "cannot be built on a worker: " in str(told[0])

    def test_what_holds_a_lock_cannot_be_in_two_places(self, started):
        executor = started()
        with pytest.raises(ExecutorError, match=r"the oracle '.*lambda.*' cannot be sent to another process"):
            executor.calling(RateLimited(FunctionOracle(lambda design: 1.0), n=1, seconds=1.0))

    def test_what_happens_to_a_call_whose_connection_breaks(self, oracle, monkeypatch):
        remote = oracle(peak)

        def broken(*args, **settings):
            raise ConnectionError("Client is shutting down")

        with monkeypatch.context() as patch:
            patch.setattr("ray.wait", broken)
            (told,) = call(remote, DESIGNS[:1])
        assert isinstance(told, Unanswered)
        assert "Client is shutting down; it may have been charged" in str(told)
        with monkeypatch.context() as patch:
            patch.setattr("ray.is_initialized", lambda: False)
            (told,) = call(remote, DESIGNS[:1])
        assert isinstance(told, NotAccepted)

    def test_secrets_travel_as_they_were_written(self, monkeypatch):
        from ray import cloudpickle

        monkeypatch.setenv("LAB_TOKEN", "s3cret-of-the-lab")
        secret = revealed("Bearer ${env:LAB_TOKEN}")
        packed = cloudpickle.dumps({"headers": secret})
        assert b"s3cret" not in packed
        assert cloudpickle.loads(packed) == {"headers": "Bearer s3cret-of-the-lab"}

    def test_calls_find_room_where_workers_have_taken_every_cpu(self, started, cluster):
        executor = started(n_workers=2, cpus_per_worker=4.0)
        assert eventually(lambda: executor.sample(None, PLAIN[:1]) and executor.n_workers == 2)
        assert [a.outcomes["value"] for a in call(executor.calling(FunctionOracle(_one)), DESIGNS)] == [
            1.0
        ] * 4

    def test_a_users_file_travels_with_what_lies_beside_it(self, cluster, started, tmp_path):
        (tmp_path / "beside_it.py").write_text("def double(x): return 2 * x\n")
        (tmp_path / "mine.py").write_text(
            "from beside_it import double\ndef f(design): return double(float(design[0]))\n"
        )
        function = user_code.load_attribute("mine.py:f", tmp_path)
        remote = started().calling(FunctionOracle(function))
        assert [answer.outcomes["value"] for answer in call(remote, DESIGNS)] == [0.0, 2.0, 4.0, 6.0]


# ------------------------------------------------------------------- campaigns
def peak(design):
    return -float(((design - 0.5) ** 2).sum())


METHOD = SteeredPrior(surrogate=ExactGP(), n_shards=3, sampler=SamplerConfig(4, 4))


def run(directory, executor, function=peak, budget=24, batch_size=8, **settings):
    """Run a campaign and return its designs and answers, in order."""
    more = {"method": METHOD, "encoder": Standardizer(), "executor": executor, **settings}
    with Campaign.open(
        directory, prior=PRIOR, oracle=function, budget=budget, batch_size=batch_size, **more
    ) as campaign:
        campaign.run()
        queries = campaign.ledger.queries()
        return campaign.archive.designs(queries), [query.state for query in queries]


class TestCampaigns:
    def test_is_the_same_on_ray_as_here(self, cluster, tmp_path):
        here, _ = run(tmp_path / "here", Local())
        there, _ = run(tmp_path / "there", Ray(n_workers=2), parallel=4)
        assert torch.equal(here, there)

    def test_goes_on_elsewhere_in_the_middle(self, cluster, tmp_path):
        whole, _ = run(tmp_path / "whole", Local())
        calls = []

        def dying(design):
            calls.append(design)
            if len(calls) > 16:
                raise KeyboardInterrupt
            return peak(design)

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "c", Local(), FunctionOracle(dying, is_idempotent=True), in_doubt="retry")
        calls.clear()
        again, _ = run(
            tmp_path / "c", Ray(n_workers=1), FunctionOracle(dying, is_idempotent=True), in_doubt="retry"
        )
        assert torch.equal(whole, again)

    def test_a_worker_lost_in_a_paid_call_leaves_that_query_in_doubt_and_the_rest_is_kept(
        self, cluster, tmp_path
    ):
        order = tmp_path / "die"
        order.touch()

        def mortal(design):
            try:
                order.unlink()
            except FileNotFoundError:
                return peak(design)
            return os.kill(os.getpid(), signal.SIGKILL)

        _, states = run(tmp_path / "c", Ray(n_workers=1), mortal, parallel=3)
        assert states.count(QueryState.IN_DOUBT) == 1
        assert states.count(QueryState.DONE) == 23

    def test_an_oracle_out_of_reach_ends_it(self, cluster, tmp_path):
        def deadly(design):
            os.kill(os.getpid(), signal.SIGKILL)

        with pytest.raises(CampaignError, match=r"gave no answer: the process that called .*deadly was lost"):
            run(tmp_path / "c", Ray(n_workers=1), deadly, parallel=2)
        with Campaign.open(
            tmp_path / "c", prior=PRIOR, oracle=deadly, budget=24, batch_size=8, method=METHOD
        ) as c:
            assert 2 <= c.ledger.counts().in_doubt <= 3
            assert c.ledger.counts().n == 8

    def test_parallel_calls_need_a_place(self, tmp_path):
        with pytest.raises(ConfigError, match=r"oracle\.parallel makes calls as tasks on Ray"):
            run(tmp_path / "c", Local(), parallel=2)


# ------------------------------------------------------------------- a cluster of one's own
OWN = """
import os, sys
import torch
from bbo.places import Ray
from smc.priors.gaussian import GaussianPrior
from bbo.executor import SampleRequest
from smc.sampler import SamplerConfig

executor = Ray(n_workers=1).start(GaussianPrior(torch.zeros(2), 1.0, 4))
executor.sample(None, [SampleRequest(SamplerConfig(2, 2, guidance=None), seed=0)])
import ray
print(ray._private.worker._global_node.get_session_dir_path())
print(ray.get_runtime_context().gcs_address)
sys.stdout.flush()
{end}
"""


def own(end, **environment):
    """Run a program that starts a cluster of its own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", OWN.format(end=end)], env={**env, **environment}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


END = """
from oracles.callables import FunctionOracle
from oracles.calls import call

another = Ray(n_workers=1).start(GaussianPrior(torch.zeros(2), 1.0, 4))
remote = another.calling(FunctionOracle(lambda design: 1.0))
input()
executor.close()
another.sample(None, [SampleRequest(SamplerConfig(2, 2, guidance=None), seed=0)])
another.close()
print(ray.is_initialized(), type(call(remote, torch.zeros(1, 2))[0]).__name__, ray.is_initialized(), flush=True)
input()
"""


class TestOwnCluster:
    def test_ends_with_the_executor_and_lets_nobody_in_without_the_token(self):
        with own(END) as program:
            session, address = program.stdout.readline().strip(), program.stdout.readline().strip()
            assert session, program.stderr.read()
            assert processes_of(session)
            assert all("--minimal" in command for command in processes_of("dashboard.py"))  # serves nothing
            env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong" * 8}
            code = f"from ray._raylet import GcsClient; GcsClient(address={address!r}, cluster_id=None)"
            intruder = subprocess.run(
                [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=60
            )
            assert intruder.returncode != 0
            assert "InvalidAuthToken" in intruder.stderr
            program.stdin.write("\n")
            program.stdin.flush()
            assert program.stdout.readline() == "False NotAccepted False\n"
            assert eventually(lambda: not processes_of(session))
            program.communicate("\n", timeout=20)

    def test_a_driver_that_is_killed_leaves_nothing_running(self):
        with own("input()") as program:
            session = program.stdout.readline().strip()
            assert session, program.stderr.read()
            program.kill()
        assert eventually(lambda: not processes_of(session), 30)

    def test_without_token_authentication_none_is_started(self):
        with own("", RAY_AUTH_MODE="disabled") as program:
            out, told = program.communicate(timeout=60)
        assert program.returncode != 0
        assert out == ""
        assert "RAY_AUTH_MODE is 'disabled', and Ray listens on all addresses" in told

    @pytest.mark.parametrize("address", ["auto", "ray://127.0.0.1:1"])
    def test_a_cluster_that_is_not_there_cannot_be_joined(self, address, tmp_path):
        code = (
            "import torch; from bbo.places import Ray; from smc.priors.gaussian import GaussianPrior\n"
            f"Ray({address!r}).start(GaussianPrior(torch.zeros(2), 1.0, 4))"
        )
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        env["RAY_TMPDIR"] = str(tmp_path)  # where the clusters of this machine are looked for
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
        )
        assert f"ExecutorError: cannot join the Ray cluster at {address}" in done.stderr
        assert ("pip install 'ray[client]'" in done.stderr) == (address != "auto")

    def test_a_process_is_in_one_cluster_at_a_time(self, cluster):
        with pytest.raises(
            ConfigError, match=r"is in the Ray cluster at .* already, and cannot join 10\.0\.0\.1:6379"
        ):
            Ray("10.0.0.1:6379").start(PRIOR)
        executor = Ray(cluster.address).start(PRIOR)
        executor.close()
        import ray

        assert ray.is_initialized()  # somebody else's

    def test_a_campaign_that_is_refused_leaves_the_cluster(self, cluster, tmp_path):
        from bbo.ray_executor.connection import CONNECTION

        before = CONNECTION._n_users
        run(tmp_path / "c", Ray(n_workers=1), budget=8)
        with pytest.raises(CampaignError):
            run(tmp_path / "c", Ray(n_workers=1), budget=8, seed=1)
        assert CONNECTION._n_users == before
