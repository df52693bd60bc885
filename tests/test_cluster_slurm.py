"""The SLURM script of cluster/, run from beginning to end: the commands that it calls are stand-ins. Starts no Ray."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bbo.config.files import apply
from tests.test_cluster_examples import CLUSTER, parsed

SBATCH = CLUSTER / "slurm.sbatch"


def test_the_script_is_bash_and_its_directives_come_first():
    subprocess.run(["bash", "-n", SBATCH], check=True)
    lines = SBATCH.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert directives
    assert max(directives) < first  # SLURM reads none after the first command
    assert all("#" not in lines[i][1:] for i in directives)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    done = subprocess.run(["shellcheck", SBATCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


STAND_INS = {
    "scontrol": """
        test "$*" = "show hostnames n[1-3]" && printf 'n1\\nn2\\nn3\\n'""",
    "python": """
        exec {python} -S "$@" """,
    # An srun stays until somebody ends it. Node n3 gives the trouble that the test wants.
    "srun": """
        echo "srun $*" >>"$RECORD"
        mode=$(stat -c %a "$RAY_AUTH_TOKEN_PATH")
        echo "$$ $mode $(cat "$RAY_AUTH_TOKEN_PATH") ${{RAY_AUTH_TOKEN-unset}}" >>"$RECORD.srun"
        case "$* ${{TROUBLE-}}" in
            *--nodelist=n3*broken) echo "no such library" >&2; exit 1 ;;
            *--nodelist=n3*unreachable) ;;
            *) echo joined >>"$RECORD.joined" ;;
        esac
        exec /bin/sleep 60""",
    "sleep": """
        exec /bin/sleep 0.02""",
    "bbo": """
        echo "bbo $*" >>"$RECORD"
        echo "$RAY_AUTH_MODE $RAY_ADDRESS $OMP_NUM_THREADS" >>"$RECORD.bbo"
        trap 'exit 130' INT
        [[ -z "${{STAY-}}" ]] || for _ in {{1..1000}}; do /bin/sleep 0.02; done
        exit "${{STATUS-0}}" """,
}
RAY = """
import os
class util:
    get_node_ip_address = staticmethod(lambda: "10.0.0.1")
def init(address, log_to_driver):
    assert (address, os.environ["RAY_ADDRESS"]) == ("auto", "10.0.0.1:6379")
def lines(suffix):
    with open(os.environ["RECORD"] + suffix, "a+") as record:
        record.seek(0)
        return len(record.readlines())
def nodes():  # none when somebody looks for the first time, then one more each time
    n = min(lines(".looks"), lines(".joined"))
    with open(os.environ["RECORD"] + ".looks", "a") as looks:
        looks.write("once\\n")
    if n == 0:
        raise ConnectionError
    return [{"Alive": True}] * n + [{"Alive": False}]
"""


class Job:
    """The script on three nodes with four CPUs and two GPUs each, among stand-ins that write down what they get."""

    def __init__(self, directory: Path, *arguments: str, **environment: str) -> None:
        (directory / "bin").mkdir()
        for name, body in STAND_INS.items():
            path = directory / "bin" / name
            path.write_text("#!/bin/bash" + body.format(python=sys.executable) + "\n")
            path.chmod(0o700)
        (directory / "ray.py").write_text(RAY)
        self.home = directory / "home"
        self.home.mkdir()
        self._record = directory / "record"
        self.token_path = self.home / ".ray" / "bbo-17.token"
        self.process = subprocess.Popen(
            ["bash", SBATCH, *arguments],
            env={
                "PATH": f"{directory / 'bin'}:/usr/bin:/bin",
                "PYTHONPATH": str(directory),
                "HOME": str(self.home),
                "RECORD": str(self._record),
                "RAY_AUTH_TOKEN": "of another cluster",
                "SLURM_JOB_ID": "17",
                "SLURM_JOB_NODELIST": "n[1-3]",
                "SLURM_CPUS_PER_TASK": "4",
                "SLURM_GPUS_ON_NODE": "2",
                **environment,
            },
            stderr=subprocess.PIPE,
            text=True,
            # Tests that run in the background of a shell ignore SIGINT, and so would all that they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def end(self) -> int:
        """The status it ends with; nothing that it started is left."""
        _, self.said = self.process.communicate(timeout=20)
        for line in self.lines(".srun"):
            with pytest.raises(ProcessLookupError):
                os.kill(int(line.split()[0]), 0)
        assert not self.token_path.exists()
        return self.process.returncode

    def lines(self, suffix: str = "") -> list[str]:
        path = Path(f"{self._record}{suffix}")
        return path.read_text().splitlines() if path.exists() else []

    def driver(self) -> list[str]:
        """The command of the driver, which came last."""
        *sruns, driver = self.lines()
        assert len(sruns) == 3
        return driver.split()

    def rays(self) -> dict[str, dict]:
        """What Ray makes of the command on each node."""
        rays = {}
        for line in self.lines()[:3]:
            step, command = line.split(" ray ", 1)
            (node,) = re.findall(r"--nodelist=(\S+)", step)
            assert {"--nodes=1", "--ntasks=1", "--cpus-per-task=4", "--export=ALL"} <= set(step.split())
            rays[node] = parsed(["ray", *command.split()])
        return rays


def test_the_job_starts_a_ray_on_every_node_and_then_the_driver(tmp_path):
    job = Job(tmp_path, "mine.yaml", "executor.max_batch=32", "method.kl_coef=0.1", STATUS="3")
    assert job.end() == 3  # the driver's
    rays = job.rays()
    assert set(rays) == {"n1", "n2", "n3"}
    head = rays.pop("n1")
    assert (head["head"], head["node_ip_address"], head["port"]) == (True, "10.0.0.1", 6379)
    assert head["include_dashboard"] is False
    assert head["num_cpus"] == 3  # one is the driver's
    for ray in rays.values():
        assert (ray["head"], ray["address"], ray["num_cpus"]) == (False, "10.0.0.1:6379", 4)
    for ray in (head, *rays.values()):
        assert ray["block"]
        assert ray["disable_usage_stats"]
        assert ray["temp_dir"] == "/tmp/ray-17"  # /tmp/ray may be somebody else's
    assert len(job.lines(".looks")) >= 4  # none, one, two, three nodes
    command, subcommand, config, *overrides = job.driver()
    assert (command, subcommand, config) == ("bbo", "run", "mine.yaml")
    assert overrides[-2:] == ["executor.max_batch=32", "method.kl_coef=0.1"]
    raw: dict = {}
    for override in overrides:
        apply(raw, override)
    executor = {"type": "ray", "address": "auto", "n_workers": 6, "gpus_per_worker": 1, "max_batch": 32}
    assert raw["executor"] == executor
    assert job.lines(".bbo") == ["token 10.0.0.1:6379 1"]


def test_a_job_without_gpus_has_a_worker_for_each_cpu_but_one(tmp_path):
    job = Job(tmp_path, "mine.yaml", SLURM_GPUS_ON_NODE="0")
    assert job.end() == 0
    assert {"executor.n_workers=11", "executor.gpus_per_worker=0"} <= set(job.driver())


def test_every_node_reads_a_token_that_is_new_private_and_gone_afterwards(tmp_path):
    tokens = set()
    for number in range(2):
        directory = tmp_path / str(number)
        directory.mkdir()
        job = Job(directory, "mine.yaml")
        assert job.end() == 0
        for line in job.lines(".srun"):
            _, mode, token, in_environment = line.split()
            assert stat.S_IMODE(int(mode, 8)) == 0o600
            assert re.fullmatch(r"[0-9a-f]{64}", token)
            assert in_environment == "unset"
            assert not any(token in recorded for recorded in job.lines())  # in no argument
            tokens.add(token)
    assert len(tokens) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_the_driver_to_stop(tmp_path, number):
    job = Job(tmp_path, "mine.yaml", STAY="yes")
    deadline = time.monotonic() + 10
    while not job.lines(".bbo") and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.1)  # until the stand-in has set its trap
    job.process.send_signal(number)
    assert job.end() == 130


def test_a_ray_that_does_not_start_ends_the_job_before_the_driver(tmp_path):
    job = Job(tmp_path, "mine.yaml", TROUBLE="broken")
    assert job.end() == 1
    assert "no such library" in job.said
    assert "Ray ended on one of n1 n2 n3" in job.said
    assert not job.lines(".bbo")


def test_a_node_that_nobody_hears_of_ends_the_job_after_ten_minutes(tmp_path):
    job = Job(tmp_path, "mine.yaml", TROUBLE="unreachable", SECONDS="601")  # bash counts on from there
    assert job.end() == 1
    assert re.search(r"[012] of 3 nodes joined Ray at 10\.0\.0\.1:6379 in 600 s", job.said)
    assert not job.lines(".bbo")


def test_a_job_without_a_campaign_says_how_it_is_used(tmp_path):
    job = Job(tmp_path)
    assert job.end() == 2
    assert job.said.startswith("usage: sbatch")
    assert not job.lines()
