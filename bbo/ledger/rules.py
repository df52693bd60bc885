"""What the database itself enforces, whoever writes to it, this package or a person.

A query changes state only along TRANSITIONS, is answered once, has outcomes exactly when it is done and an error
exactly when it failed, and nothing is taken back.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from bbo.ledger.tables import QueryState

TRANSITIONS: tuple[tuple[QueryState, QueryState], ...] = (
    (QueryState.RESERVED, QueryState.SENT),
    (QueryState.RESERVED, QueryState.REJECTED),
    (QueryState.SENT, QueryState.DONE),
    (QueryState.SENT, QueryState.FAILED),
    (QueryState.SENT, QueryState.IN_DOUBT),
    (QueryState.SENT, QueryState.REJECTED),  # by the people who were asked for it, and nobody else
    (QueryState.SENT, QueryState.ABANDONED),
    (QueryState.IN_DOUBT, QueryState.RESERVED),  # retried
    (QueryState.IN_DOUBT, QueryState.DONE),  # answered late
    (QueryState.IN_DOUBT, QueryState.FAILED),
    (QueryState.IN_DOUBT, QueryState.ABANDONED),
    (QueryState.ABANDONED, QueryState.DONE),  # given up too early
    (QueryState.ABANDONED, QueryState.FAILED),
)
"""Every legal change of a query's state, as (from, to)."""


@dataclass(frozen=True)
class Rule:
    """A change that is refused with a message under a condition on its OLD and NEW row."""

    name: str
    change: str
    """Such as "UPDATE OF state ON queries"."""
    condition: str
    message: str


_LEGAL = " OR ".join(f"(OLD.state = '{old}' AND NEW.state = '{new}')" for old, new in TRANSITIONS)
_ANSWERED = "EXISTS (SELECT 1 FROM evaluations WHERE query_id = NEW.id AND state = NEW.state)"
_HAS_OUTCOMES = "EXISTS (SELECT 1 FROM outcomes WHERE query_id = NEW.id)"
_OPEN_ANSWER = (
    "EXISTS (SELECT 1 FROM evaluations JOIN queries ON queries.id = evaluations.query_id"
    " WHERE query_id = NEW.query_id AND evaluations.state = 'done'"
    " AND queries.state IN ('sent', 'in_doubt', 'abandoned'))"
)
_FIXED = (
    'id, campaign_id, round, slot, key, artifact, "row", predicted_mean, predicted_std, provenance, '
    "reserved_at, is_given"
)

RULES: tuple[Rule, ...] = (
    Rule("query_starts", "INSERT ON queries", "NEW.state <> 'reserved'", "a query starts as reserved"),
    Rule("query_moves", "UPDATE OF state ON queries", f"NOT ({_LEGAL})", "illegal transition of a query"),
    Rule(
        "query_is_rejected",
        "UPDATE OF state ON queries",
        "OLD.state = 'sent' AND NEW.state = 'rejected' AND NOT OLD.is_asked",
        "what an oracle was sent is never rejected: it may have been paid",
    ),
    Rule(
        "query_ends",
        "UPDATE OF state ON queries",
        f"NEW.state IN ('done', 'failed') AND NOT ({_ANSWERED} AND {_HAS_OUTCOMES} = (NEW.state = 'done'))",
        "done needs an evaluation with outcomes, failed one with an error",
    ),
    Rule("query_is_fixed", f"UPDATE OF {_FIXED} ON queries", "TRUE", "a reserved query is never rewritten"),
    Rule(
        "outcome_of_open", "INSERT ON outcomes", f"NOT {_OPEN_ANSWER}", "outcomes come with their evaluation"
    ),
    Rule("evaluation_is_fixed", "UPDATE ON evaluations", "TRUE", "an evaluation is never rewritten"),
    Rule("outcome_is_fixed", "UPDATE ON outcomes", "TRUE", "an outcome is never rewritten"),
    *(
        Rule(f"{table}_stay", f"DELETE ON {table}", "TRUE", f"{table} are never deleted")
        for table in ("campaigns", "rounds", "queries", "evaluations", "outcomes", "artifacts", "events")
    ),
    Rule(
        "campaign_only_grows",
        "UPDATE ON campaigns",
        "NEW.budget < OLD.budget OR NEW.fence < OLD.fence",
        "budget and fence only grow",
    ),
)


def create_rules(connection: Connection) -> None:
    """Create the triggers, in the caller's transaction."""
    speak = {"sqlite": _in_sqlite, "postgresql": _in_postgresql}[connection.dialect.name]
    for rule in RULES:
        for statement in speak(rule):
            connection.exec_driver_sql(statement)


def _in_sqlite(rule: Rule) -> list[str]:
    raised = f"SELECT RAISE(ABORT, '{rule.message}')"
    return [f"CREATE TRIGGER {rule.name} BEFORE {rule.change} WHEN {rule.condition} BEGIN {raised}; END"]


def _in_postgresql(rule: Rule) -> list[str]:
    back = "OLD" if rule.change.startswith("DELETE") else "NEW"
    body = f"BEGIN IF {rule.condition} THEN RAISE EXCEPTION '{rule.message}'; END IF; RETURN {back}; END"
    return [
        f"CREATE FUNCTION bbo_{rule.name}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$",
        f"CREATE TRIGGER {rule.name} BEFORE {rule.change} FOR EACH ROW EXECUTE FUNCTION bbo_{rule.name}()",
    ]
