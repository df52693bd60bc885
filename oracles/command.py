"""An external program as an oracle: any language, any environment, JSON lines on its input and output.

For each design the program reads one line and prints one line, with the same `id`:

    {"id": 0, "design": [1.0, 2.0], "key": "…"}       →    {"id": 0, "value": 1.5}

The answer's other forms stand in `oracles.messages`. `key` names the query, where the campaign gives one. With
`design_as_file` there is, instead of `design`, the path of a safetensors file with the tensor `design`:
`{"id": 0, "design_file": "/…/0.safetensors"}`. Where the program `answers_lookup`, it may also read
`{"id": 0, "lookup": "<key>"}`, and prints the answer of that query or `{"id": 0, "unknown": true}`.

One process gets up to `n_per_call` lines, then its input ends. It must flush each answer, and read line by line
(mawk does not). Lines that do not
begin with a brace are taken for chatter. What an ending means:

    cannot be started                          NotAccepted: nothing was charged
    ends or crashes before it answers          the design fails; the next one gets a new process
    prints an answer that cannot be read       the same
    is later than `timeout_s`                  killed with all its children; the design fails where the program is
                                               idempotent, else Unanswered
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from oracles import secrets
from oracles.calls import Answer, Keys, late, returned
from oracles.errors import NotAccepted, OracleError
from oracles.evaluation import Evaluation
from oracles.messages import answer_of, as_lists, not_finite, parsed
from oracles.processes import Conversation, Ended, TooLate, ending, started


@dataclass(frozen=True)
class CommandOracle:
    """Asks a program, by JSON lines on its standard input and output."""

    command: tuple[str, ...]
    """The executable and its arguments; no shell reads them."""
    directory: str | Path = Path()
    """Where the program runs, and from where relative paths in `command` count."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables for the program beside those of this process; `${env:NAME}` for secrets."""
    timeout_s: float | None = None
    """Longest time for one design; None waits as long as it takes."""
    design_as_file: bool = False
    """Whether designs come as paths of safetensors files: for images and the like."""
    answers_lookup: bool = False
    """Whether the program can say, for nothing, what became of a query that was sent before."""
    design_shape: tuple[int, ...] | None = None
    is_idempotent: bool = False
    n_per_call: int | None = 1
    """Designs that one process evaluates, one after the other; None for all of a batch."""

    def __post_init__(self) -> None:
        wrong = secrets.faults(self.environment)
        if not self.command or not all(self.command[:1]):
            wrong.append("command must hold an executable and its arguments, got none")
        elif not self._is_executable():
            wrong.append(f"no executable {self.command[0]!r} on the PATH or from {self.directory}")
        if secrets.names(self.command):
            wrong.append("command lines can be read by every user of a machine; give secrets by environment")
        if not Path(self.directory).is_dir():
            wrong.append(f"no directory {self.directory}")
        if self.timeout_s is not None and not self.timeout_s > 0:
            wrong.append(f"timeout_s must be above 0, or null for none, got {self.timeout_s}")
        if wrong:
            raise OracleError("command oracle: " + "; ".join(wrong))
        secrets.check(self.environment, "command oracle")
        if self.answers_lookup:
            object.__setattr__(self, "lookup", self._lookup)

    @property
    def name(self) -> str:
        """The command line, shortened."""
        return " ".join(self.command)[:60]

    def evaluate(self, designs: Float[Tensor, "n *design"]) -> Sequence[Evaluation]:
        """Return one evaluation per design. Raises Incomplete when some have none."""
        return returned(self._answers(designs, None))

    def evaluate_keyed(
        self, designs: Float[Tensor, "n *design"], keys: Sequence[str]
    ) -> Sequence[Evaluation]:
        """Return one evaluation per design; the program is told the keys."""
        return returned(self._answers(designs, keys))

    def _answers(self, designs: Float[Tensor, "n *design"], keys: Keys) -> list[Answer]:
        with tempfile.TemporaryDirectory(prefix="bbo-") as folder:
            try:  # all files before the first design is sent: a full disk then costs nothing
                requests = [self._request(i, designs[i], keys, Path(folder)) for i in range(len(designs))]
            except (OSError, SafetensorError) as error:
                return [NotAccepted(f"cannot write the designs for {self.command[0]}: {error}")] * len(
                    designs
                )
            answers: list[Answer] = []
            while (first := len(answers)) < len(designs):
                last = None if self.n_per_call is None else first + self.n_per_call
                try:
                    answers += self._one_process(requests[first:last])
                except NotAccepted as refusal:
                    answers += [refusal] * (len(designs) - len(answers))
            return answers

    def _request(
        self, i: int, design: Float[Tensor, "*design"], keys: Keys, folder: Path
    ) -> dict[str, object] | Evaluation:
        """Return what the program is asked for a design, or why there is nothing to ask."""
        if (fault := not_finite(design)) is not None:  # JSON has no word for it
            return Evaluation.failed(fault)
        told: dict[str, object] = {"id": i} if keys is None else {"id": i, "key": keys[i]}
        if not self.design_as_file:
            return {**told, "design": as_lists(design)}
        path = folder / f"{i}.safetensors"
        save_file({"design": design.detach().cpu().contiguous()}, path)
        return {**told, "design_file": str(path)}

    def _one_process(self, requests: Sequence[dict[str, object] | Evaluation]) -> list[Answer]:
        """Return the answers to these requests up to the first at which the program ended or lost its place."""
        answers: list[Answer] = []
        with started(self.command, self._resolved(), Path(self.directory)) as process:
            talk = Conversation(process)
            for request in requests:
                message = request if isinstance(request, Evaluation) else self._asked(talk, request)
                answers.append(answer_of(message) if isinstance(message, Mapping) else message)
                if message is not request and not isinstance(message, Mapping):
                    return answers
            talk.finish()
        return answers

    def _lookup(self, key: str) -> Evaluation | None:
        """Return the program's answer to an earlier query; None when it does not know one.

        Raises NotAccepted or OracleError when the program cannot be asked.
        """
        with started(self.command, self._resolved(), Path(self.directory)) as process:
            talk = Conversation(process)
            message = self._asked(talk, {"id": 0, "lookup": key})
            if not isinstance(message, Mapping):
                raise OracleError(f"the lookup of {key} failed: {message}")
            talk.finish()
        if message.get("unknown") is True:
            return None
        (evaluation,) = returned([answer_of(message)])
        return evaluation

    def _asked(self, talk: Conversation, request: Mapping[str, object]) -> Mapping[str, object] | Answer:
        """Return the message that answers a request, or the answer that its absence amounts to."""
        try:
            line = talk.ask(json.dumps(request).encode() + b"\n", self.timeout_s)
        except TooLate:
            return late(f"no answer within {self.timeout_s:g} s; the program was killed", self.is_idempotent)
        except Ended as end:
            said = f": {talk.last_words()}" if talk.last_words() else ""
            if talk.n_answers > 0 and str(end) == ending(0):
                said += " (one that ends after an answer needs n_per_call 1)"
            return Evaluation.failed(self._safe(f"the program {end} before it answered{said}"))
        try:
            message = parsed(line)
        except ValueError:
            message = None
        text = line.decode(errors="replace")[:200]
        if not isinstance(message, Mapping):
            return Evaluation.failed(self._safe(f"expected a line of JSON, got {text}"))
        if message.get("id") != request["id"] or isinstance(message.get("id"), bool):
            return Evaluation.failed(self._safe(f"expected the answer with id {request['id']}, got {text}"))
        rest = {key: value for key, value in message.items() if key != "id"}
        safe = secrets.redacted(rest, self.environment.values())
        return safe if isinstance(safe, Mapping) else rest

    def _resolved(self) -> dict[str, str]:
        return {name: secrets.resolved(text) for name, text in self.environment.items()}

    def _safe(self, text: str) -> str:
        return str(secrets.redacted(text, self.environment.values()))

    def _is_executable(self) -> bool:
        program = self.command[0]
        if os.sep not in program:
            return shutil.which(program) is not None
        path = Path(self.directory) / program
        return path.is_file() and os.access(path, os.X_OK)
