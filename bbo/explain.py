"""Where a design came from: everything that the ledger knows of one query, in order. Needs no torch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from bbo import tables
from bbo.errors import BlobError, LedgerError
from bbo.ledger import Ledger, Query

N_NUMBERS = 24
"""Most numbers of a design that are shown."""

Line = tuple[str, str]


def explain(ledger: Ledger, query_id: int) -> list[Line]:
    """Return the story of a query as (what, text) lines. Raises LedgerError when there is no such query."""
    found = ledger.queries(ids=[query_id])
    if not found:
        raise LedgerError(
            f"expected a query of {ledger.directory}, got {query_id}; bbo export lists them all"
        )
    (query,) = found
    return [*_itself(ledger, query), *_answer(query), *_origin(ledger, query), *_events(ledger, query)]


def _itself(ledger: Ledger, query: Query) -> Iterator[Line]:
    yield "query", f"{query.id}: number {query.slot} of round {query.round}, {query.state}"
    yield "key", query.key
    try:
        numbers = tables.designs(ledger, [query])[0].reshape(-1)
        shown = " ".join(f"{number:.6g}" for number in numbers[:N_NUMBERS].tolist())
        more = f" … ({len(numbers)} numbers)" if len(numbers) > N_NUMBERS else ""
        yield "design", f"{shown}{more}"
    except BlobError as error:
        yield "design", str(error)
    yield "blob", f"{query.artifact}, row {query.row}"


def _answer(query: Query) -> Iterator[Line]:
    if query.predicted_mean is not None:
        yield "predicted", f"{query.predicted_mean:.6g} ± {query.predicted_std or 0:.3g}, before it was sent"
    answer = query.evaluation
    if answer is None:
        yield "answer", "none yet"
        return
    if answer.error is not None:
        yield "answer", f"failed: {answer.error}"
    for name, value in answer.outcomes.items():
        noise = answer.noise_std.get(name)
        yield name, f"{value:.9g}" + (f" ± {noise:.3g}" if noise is not None else "")
    yield "cost", f"{answer.cost:g}"
    for name, note in answer.metadata.items():
        yield name, str(note)[:300]


def _origin(ledger: Ledger, query: Query) -> Iterator[Line]:
    told = dict(query.provenance)
    source = told.pop("from", None)
    descent = told.pop("descent", None)
    yield "from", _SOURCES.get(str(source), str(source))
    if prompt := _prompt(ledger, told):
        yield "prompt", prompt
    if told:
        yield "lineage", ", ".join(f"{name} {_short(value)}" for name, value in told.items())
    if isinstance(descent, list) and descent:
        began, *later = (
            f"particle {place}" + (f" from step {step}" if step else "") for step, place in descent
        )
        yield "descent", ", ".join([f"began as {began} of its island", *later])
    record = next(record for record in ledger.rounds() if record.number == query.round)
    if source in ("prior", "target"):
        yield "round seed", f"{record.seed}, of campaign seed {_setting(ledger, 'campaign', 'seed')}"
        yield (
            "prior",
            f"{_setting(ledger, 'prior', 'type')}, weights {_setting(ledger, 'prior', 'fingerprint')}",
        )
    if "belief" in record.summary:
        yield "belief", f"surrogate and feasibility model, state {record.summary['belief']}"
        known = sum(q.evaluation is not None for q in ledger.queries() if q.round < query.round)
        yield "", f"fitted to the answers of earlier rounds ({known} as of now)"
        yield "surrogate", str(record.summary.get("surrogate", "not kept"))
        yield (
            "tilt",
            ", ".join(
                f"{name} {_short(record.summary[name])}"
                for name in ("kl_coef", "kl_nats")
                if name in record.summary
            )
            + _optimism(query.provenance),
        )
    drivers = [
        e.detail for e in ledger.events() if e.kind == "driven" and e.detail.get("fence") == record.fence
    ]
    for driver in drivers[:1]:
        yield "driver", f"number {record.fence}, process {driver.get('pid')} on {driver.get('host')}"
        versions = driver.get("versions")
        if isinstance(versions, Mapping):
            yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def _optimism(provenance: Mapping[str, object]) -> str:
    """Return how optimistic the query's island was, and how warm for it."""
    beta, kl_coef = provenance.get("beta"), provenance.get("island_kl_coef")
    if not isinstance(beta, float):
        return ""
    at = f" at kl_coef {kl_coef:.3g}" if isinstance(kl_coef, float) else ""
    return f"; its island looked for mean + {beta:.3g} std{at}"


def _prompt(ledger: Ledger, provenance: Mapping[str, object]) -> str:
    """Return the prompt of a query's island: empty where its prior knows no words."""
    prompts, method = _setting(ledger, "prior", "prompts"), ledger.config.get("method")
    while isinstance(method, Mapping) and "sampler" not in method:
        method = method.get("method")  # of what wraps it
    sampler = method["sampler"] if isinstance(method, Mapping) else None
    island, shard = provenance.get("island"), provenance.get("shard")
    if not isinstance(prompts, list) or not isinstance(island, int) or not isinstance(shard, int):
        return ""
    n_islands = sampler.get("n_islands", 0) if isinstance(sampler, Mapping) else 0
    return str(prompts[(shard * int(n_islands) + island) % len(prompts)])


_SOURCES = {
    "prior": "a draw from the prior itself: nothing had been learnt yet",
    "target": "a draw from the prior, steered by what had been learnt",
    "given": "somebody who measured it on their own",
    "edited": "a person, who edited another query's design",
}


def _events(ledger: Ledger, query: Query) -> Iterator[Line]:
    times = (("reserved", query.reserved_at), ("last sent", query.sent_at), ("ended", query.ended_at))
    for what, at in times:
        if at is not None:
            yield (
                what,
                _moment(at)
                + (f", {query.n_sent} times in all" if what == "last sent" and query.n_sent > 1 else ""),
            )
    for event in ledger.events():
        queries = event.detail.get("queries")
        if isinstance(queries, list) and query.id in queries:
            why = event.detail.get("why")
            yield event.kind, _moment(event.at) + (f": {why}" if why else "")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _setting(ledger: Ledger, section: str, name: str) -> object:
    found = ledger.config.get(section)
    return found.get(name, "not kept") if isinstance(found, Mapping) else "not kept"


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
