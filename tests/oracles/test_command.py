"""Programs as oracles: shell and Python ones that answer, dawdle, crash, babble and leave children behind."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bbo.config.describe import describe_oracle
from oracles import processes
from oracles.base import Keyed, Lookup
from oracles.calls import Incomplete, call
from oracles.command import CommandOracle
from oracles.errors import NotAccepted, OracleError, Unanswered
from oracles.evaluation import Evaluation
from oracles.kulfan import surfaces
from tests.contracts.oracle_contract import OracleContract
from tests.oracles.foils import foils

ROOT = Path(__file__).parents[2]
DESIGNS = torch.tensor([[1.0, 2.0], [3.0, 0.5], [0.0, 1.0], [2.0, 2.0]])
LOOP = """
import json, os, signal, subprocess, sys, time
def say(**answer):
    print(json.dumps(answer), flush=True)
for line in sys.stdin:
    ask = json.loads(line)
    a, b = ask.get("design", (0, 0))
    {body}
"""


def program(tmp_path, body, **settings):
    """Return an oracle around a Python program whose loop does `body` with ask, a and b."""
    file = tmp_path / "program.py"
    file.write_text(LOOP.format(body=textwrap.indent(textwrap.dedent(body), "    ").strip()))
    return CommandOracle((sys.executable, "-S", "-E", str(file)), **{"n_per_call": None, **settings})


def values(answers):
    return [a.outcomes.get("value") if isinstance(a, Evaluation) else type(a) for a in answers]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split(") ")[-1][0] != "Z"


def has_died(pid, seconds=5.0):
    """Return whether a process dies within so many seconds: a signal takes its time on a busy machine."""
    until = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not is_alive(pid)


def wait_for(file, seconds=5.0):
    until = time.monotonic() + seconds
    while not (file.exists() and file.read_text().strip()):
        assert time.monotonic() < until, f"{file} was never written"
        time.sleep(0.01)
    return file.read_text()


class TestContractInPython(OracleContract):
    @pytest.fixture
    def oracle(self, tmp_path):
        return program(tmp_path, "say(id=ask['id'], value=-(a*a + b*b))", is_idempotent=True)

    @pytest.fixture
    def designs(self):
        return DESIGNS


class TestContractInShell(OracleContract):
    """The example."""

    @pytest.fixture
    def oracle(self):
        return CommandOracle(("sh", "area.sh"), directory=ROOT / "examples", is_idempotent=True, n_per_call=2)

    @pytest.fixture
    def designs(self):
        return foils(3)

    def test_its_area_is_that_between_the_surfaces(self, oracle, designs):
        x = np.linspace(0, 1, 20_001)
        designs = designs + 0.02 * torch.rand(3, 18, generator=torch.Generator().manual_seed(0))
        upper, lower = surfaces(designs.numpy(), x)
        expected = np.trapezoid(upper - lower, x, axis=1)
        assert values(call(oracle, designs)) == pytest.approx(expected.tolist(), rel=1e-4)

    def test_a_thick_foil_does_not_fit_and_another_shape_is_refused(self, oracle, designs):
        (thick,) = call(oracle, designs[:1] * 2)
        assert thick.error.startswith("does not fit the mould: area 0.1")
        assert call(oracle, DESIGNS[:1])[0].error == "expected 18 numbers"


def test_a_program_is_told_ids_designs_and_keys(tmp_path):
    oracle = program(tmp_path, "say(id=ask['id'], value=0, heard=ask)")
    assert isinstance(oracle, Keyed)
    first, second = oracle.evaluate_keyed(DESIGNS[:2], ["k1", "k2"])
    assert first.metadata == {"heard": {"id": 0, "key": "k1", "design": [1.0, 2.0]}}
    assert second.metadata == {"heard": {"id": 1, "key": "k2", "design": [3.0, 0.5]}}
    assert "key" not in oracle.evaluate(DESIGNS[:1])[0].metadata["heard"]


def test_a_design_that_json_cannot_say_fails_and_the_program_is_not_asked(tmp_path):
    oracle = program(
        tmp_path, f"open({str(tmp_path / 'asked')!r}, 'a').write('x'); say(id=ask['id'], value=a)"
    )
    designs = torch.tensor([[float("nan"), 1.0], [1.0, float("-inf")], [2.0, 3.0]])
    first, second, third = oracle.evaluate(designs)
    assert first.error == "number 1 of the design is nan"
    assert second.error == "number 2 of the design is -inf"
    assert third.outcomes == {"value": 2.0}
    assert (tmp_path / "asked").read_text() == "x"


def test_one_process_evaluates_a_call(tmp_path):
    answers = program(tmp_path, "say(id=ask['id'], value=0, pid=os.getpid())").evaluate(DESIGNS)
    assert len({a.metadata["pid"] for a in answers}) == 1


def test_big_designs_go_by_file(tmp_path):
    file = tmp_path / "mean.py"
    file.write_text(
        "import json, sys\nfrom safetensors.numpy import load_file\n"
        "for line in sys.stdin:\n"
        "    ask = json.loads(line)\n"
        "    x = load_file(ask['design_file'])['design']\n"
        "    print(json.dumps({'id': ask['id'], 'value': float(x.mean()), 'shape': x.shape}), flush=True)\n"
    )
    oracle = CommandOracle((sys.executable, str(file)), design_as_file=True, n_per_call=None)
    images = torch.arange(2 * 3 * 64 * 64.0).view(2, 3, 64, 64)
    answers = oracle.evaluate(images.transpose(2, 3))  # not contiguous
    assert values(answers) == pytest.approx(images.mean((1, 2, 3)).tolist())
    assert answers[0].metadata == {"shape": [3, 64, 64]}


def test_a_full_disk_is_noticed_before_anything_is_sent(tmp_path, monkeypatch):
    def full(tensors, path):
        if path.name == "2.safetensors":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("oracles.command.save_file", full)
    oracle = program(tmp_path, f"open({str(tmp_path / 'asked')!r}, 'w')", design_as_file=True)
    answers = call(oracle, DESIGNS)
    assert values(answers) == [NotAccepted] * 4
    assert "No space left on device" in str(answers[0])
    assert not (tmp_path / "asked").exists()


def test_a_big_design_that_the_program_reads_slowly_does_not_block(tmp_path):
    oracle = program(
        tmp_path, "print('x' * 200_000, flush=True); say(id=ask['id'], value=sum(map(sum, ask['design'])))"
    )
    (tmp_path / "program.py").write_text(
        (tmp_path / "program.py").read_text().replace('a, b = ask.get("design", (0, 0))', "")
    )
    assert values(oracle.evaluate(torch.ones(1, 300, 300))) == [90_000.0]


def test_chatter_and_a_missing_last_newline_do_no_harm(tmp_path):
    oracle = program(
        tmp_path,
        "print('Loading…'); print(file=sys.stderr); sys.stdout.write(json.dumps(dict(id=ask['id'], value=a))); break",
    )
    assert values(replace(oracle, n_per_call=1).evaluate(DESIGNS)) == [1.0, 3.0, 0.0, 2.0]
    second = oracle.evaluate(DESIGNS)[1]
    assert "exited with code 0 before it answered" in second.error
    assert second.error.endswith("(one that ends after an answer needs n_per_call 1)")


# ------------------------------------------------------------------- what an ending means
def test_a_missing_executable_is_refused_when_the_oracle_is_made():
    with pytest.raises(OracleError, match="no executable 'no-such-program' on the PATH"):
        CommandOracle(("no-such-program",))


def test_an_executable_that_has_gone_was_not_accepted(tmp_path):
    script = tmp_path / "oracle.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    oracle = CommandOracle(("./oracle.sh",), directory=tmp_path, n_per_call=None)
    script.unlink()
    with pytest.raises(Incomplete) as refused:
        oracle.evaluate(DESIGNS)
    assert [type(a) for a in refused.value.answers] == [NotAccepted] * 4
    assert "cannot start ./oracle.sh" in str(refused.value)


def test_a_crash_fails_one_design_and_the_rest_get_a_new_process(tmp_path):
    body = """
    if a == 3:
        print("mesh is tangled", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    say(id=ask["id"], value=a)
    """
    answers = program(tmp_path, body).evaluate(DESIGNS)
    assert values(answers) == [1.0, None, 0.0, 2.0]
    assert answers[1].error == "the program was ended by SIGSEGV before it answered: mesh is tangled"


def test_a_program_that_exits_says_with_which_code(tmp_path):
    (answer,) = program(tmp_path, "sys.exit(3)").evaluate(DESIGNS[:1])
    assert answer.error == "the program exited with code 3 before it answered"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("say(id=7, value=1)", "expected the answer with id 0"),
        ("say(value=1)", "expected the answer with id 0"),
        ("say(id=False, value=1)", "expected the answer with id 0"),
        ("print('{not json', flush=True)", "expected a line of JSON"),
        ("print('{' * 100_000, flush=True)", "expected a line of JSON"),
        ("say(id=ask['id'])", "exactly one of"),
        ("say(id=ask['id'], value=float('nan'))", "not a finite number"),
        ("say(id=ask['id'], error='too thin')", "too thin"),
        ("os.close(1); time.sleep(60)", "closed its output before it answered"),
    ],
)
def test_answers_that_cannot_be_used_fail_the_design(tmp_path, monkeypatch, body, said):
    monkeypatch.setattr(processes, "GRACE_S", 0.2)
    answers = program(tmp_path, body).evaluate(DESIGNS[:1])
    assert said in answers[0].error


def test_an_answer_too_many_is_never_taken_for_the_next_design(tmp_path):
    answers = program(tmp_path, "say(id=ask['id'], value=a); say(id=ask['id'], value=99)").evaluate(DESIGNS)
    assert 99.0 not in values(answers)
    assert values(answers)[0] == 1.0


def test_a_program_that_knows_it_cannot_say_is_believed(tmp_path):
    oracle = program(tmp_path, "say(id=ask['id'], **({'unanswered': 'job 12'} if a == 3 else {'value': a}))")
    answers = call(oracle, DESIGNS)
    assert values(answers) == [1.0, Unanswered, 0.0, 2.0]
    assert str(answers[1]) == "job 12"
    oracle = program(tmp_path, "say(id=ask['id'], not_accepted='queue is full')")
    assert values(call(oracle, DESIGNS[:1])) == [NotAccepted]


SLOW = """
if a == 3:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid
    child = subprocess.Popen(["sleep", "60"])
    open({file!r}, "w").write(str(child.pid))
    time.sleep(60)
say(id=ask["id"], value=a)
"""


@pytest.mark.parametrize("is_idempotent", [True, False])
def test_a_time_limit_kills_the_program_and_its_children_and_keeps_the_other_answers(tmp_path, is_idempotent):
    file = tmp_path / "child.pid"
    oracle = program(tmp_path, SLOW.format(file=str(file)), timeout_s=1.0, is_idempotent=is_idempotent)
    began = time.monotonic()
    answers = call(oracle, DESIGNS)
    assert time.monotonic() - began < 6
    assert values(answers) == [1.0, None if is_idempotent else Unanswered, 0.0, 2.0]
    said = answers[1].error if is_idempotent else str(answers[1])
    assert said.startswith("no answer within 1 s; the program was killed")
    assert has_died(int(wait_for(file)))


def test_a_program_that_ignores_sigterm_is_killed_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_S", 0.3)
    file = tmp_path / "pid"
    body = f"""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open({str(file)!r}, "w").write(str(os.getpid()))
    time.sleep(60)
    """
    call(program(tmp_path, body, timeout_s=1.0), DESIGNS[:1])
    assert has_died(int(file.read_text()))


def test_a_program_that_never_ends_by_itself_is_ended_after_its_last_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_S", 0.3)
    body = """
    say(id=ask["id"], value=a, pid=os.getpid())
    if a == 2:
        time.sleep(60)
    """
    oracle = program(tmp_path, body)
    answers = oracle.evaluate(DESIGNS)
    assert values(answers) == [1.0, 3.0, 0.0, 2.0]
    assert has_died(answers[0].metadata["pid"])


def test_what_a_program_leaves_running_ends_with_it(tmp_path):
    body = """
    child = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    say(id=ask["id"], value=a, child=child.pid)
    """
    (answer,) = program(tmp_path, body).evaluate(DESIGNS[:1])
    assert answer.outcomes == {"value": 1.0}
    assert has_died(answer.metadata["child"])


def test_a_program_that_does_not_read_a_big_design_fails_it_alone(tmp_path):
    script = tmp_path / "deaf.sh"
    script.write_text('exec 0<&-; sleep 0.2; echo "no licence" >&2; exit 3')
    answers = CommandOracle(("sh", str(script))).evaluate(torch.ones(2, 300, 300))
    assert [a.error for a in answers] == ["the program exited with code 3 before it answered: no licence"] * 2


def test_ctrl_c_leaves_no_program_behind(tmp_path):
    file = tmp_path / "pid"
    oracle = program(tmp_path, f"open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)")
    code = "import torch; from oracles.command import CommandOracle; "
    code += f"CommandOracle({oracle.command!r}).evaluate(torch.ones(1, 2))"
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    pid = int(wait_for(file, 30))
    driver.send_signal(signal.SIGINT)
    assert driver.wait(10) != 0
    assert has_died(pid)


def test_many_calls_leave_no_file_open(tmp_path):
    oracle = CommandOracle(("sh", "area.sh"), directory=ROOT / "examples", n_per_call=None)
    oracle.evaluate(DESIGNS)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        oracle.evaluate(DESIGNS)
    assert len(os.listdir("/proc/self/fd")) == before


# ------------------------------------------------------------------- lookup, environment, settings
def test_lookup_is_offered_where_it_is_declared(tmp_path):
    body = """
    if "lookup" in ask:
        known = {"q1": {"value": 4.5}, "q2": {"error": "broke"}}
        say(id=ask["id"], **known.get(ask["lookup"], {"unknown": True}))
    """
    oracle = program(tmp_path, body, answers_lookup=True)
    assert isinstance(oracle, Lookup)
    assert oracle.lookup("q1").outcomes == {"value": 4.5}
    assert oracle.lookup("q2").error == "broke"
    assert oracle.lookup("q3") is None
    assert not isinstance(program(tmp_path, body), Lookup)
    with pytest.raises(OracleError, match="the lookup of q1 failed"):
        program(tmp_path, "sys.exit(1)", answers_lookup=True).lookup("q1")


def test_secrets_reach_the_program_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", "s3cret")
    environment = {"API_TOKEN": "t-${env:LAB_TOKEN}", "PLAIN": "yes"}
    body = "say(id=ask['id'], value=0, has=os.environ['API_TOKEN'] == 't-s3' + 'cret', you=[os.environ['API_TOKEN']])"
    oracle = program(tmp_path, body, environment=environment)
    (answer,) = oracle.evaluate(DESIGNS[:1])
    assert answer.metadata == {"has": True, "you": ["t-${env:LAB_TOKEN}"]}
    crash = program(tmp_path, "sys.exit('bad token ' + os.environ['API_TOKEN'])", environment=environment)
    (failed,) = crash.evaluate(DESIGNS[:1])
    assert failed.error.endswith("bad token t-${env:LAB_TOKEN}")
    told = json.dumps(describe_oracle(oracle)) + repr(oracle)
    assert "t-${env:LAB_TOKEN}" in told
    assert "s3cret" not in told


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"command": ()}, "must hold an executable"),
        ({"command": ("awk", "${env:TOKEN}")}, "give secrets by environment"),
        ({"directory": "nowhere"}, "no directory nowhere"),
        ({"timeout_s": 0.0}, "timeout_s must be above 0"),
        ({"environment": {"API_KEY": "abc"}}, "write ${env:NAME}"),
        ({"environment": {"X": "${env:NOT_SET}"}}, "set the environment variable NOT_SET"),
        ({"environment": {"X": "${env:}"}}, "must refer to the environment as ${env:NAME}"),
    ],
)
def test_settings_that_are_refused(settings, said):
    with pytest.raises(OracleError) as refused:
        CommandOracle(**{"command": ("awk",), **settings})
    assert said in str(refused.value)
