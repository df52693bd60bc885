"""Secrets by name: looked up at use, and taken out of whatever is said."""

import pytest

from oracles import secrets
from oracles.errors import NotAccepted


def test_a_placeholder_is_looked_up_when_it_is_used(monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", "one")
    assert secrets.resolved("Bearer ${env:LAB_TOKEN}/${env:LAB_TOKEN}") == "Bearer one/one"
    monkeypatch.setenv("LAB_TOKEN", "${env:HOME} \\1")  # a value is no pattern and no placeholder
    assert secrets.resolved("${env:LAB_TOKEN}") == "${env:HOME} \\1"
    monkeypatch.delenv("LAB_TOKEN")
    with pytest.raises(NotAccepted, match="LAB_TOKEN is not set"):
        secrets.resolved("${env:LAB_TOKEN}")


def test_secrets_are_taken_out_wherever_they_stand(monkeypatch):
    monkeypatch.setenv("A", "abc")
    monkeypatch.setenv("B", "abcdef")
    monkeypatch.setenv("EMPTY", "")
    said = {"abcdef": ["abc", {"x": "-abcdef-abc-"}, 5, None], "plain": "ab"}
    assert secrets.redacted(said, ["${env:A}", "${env:B} ${env:EMPTY}"]) == {
        "${env:B}": ["${env:A}", {"x": "-${env:B}-${env:A}-"}, 5, None],
        "plain": "ab",
    }
    assert secrets.redacted(said, []) == said


@pytest.mark.parametrize("text", ["${LAB_TOKEN}", "${env:}", "${env:a b}", "x${ENV:A}", "${env:A"])
def test_a_placeholder_that_is_none_is_a_fault(text):
    (fault,) = secrets.faults({"X": text})
    assert "must refer to the environment as ${env:NAME}" in fault


def test_a_literal_secret_is_a_fault_that_does_not_repeat_it():
    (fault,) = secrets.faults({"X-Api-Key": "hunter2"})
    assert "hunter2" not in fault
    assert secrets.faults({"X-Api-Key": "${env:KEY}", "X-Api-Key-2": "", "Accept": "text/plain"}) == []
