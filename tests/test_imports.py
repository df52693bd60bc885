"""What importing costs: names are lazy, and heavy libraries are loaded only where they are adapted."""

import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "diffusers",
    "transformers",
    "huggingface_hub",
    "botorch",
    "gpytorch",
    "ray",
    "pandas",
    "plotly",
    "neuralfoil",
    "aerosandbox",
}


def loaded_by(statement):
    """Return which heavy packages a fresh interpreter has after `statement`."""
    program = f"{statement}\nimport sys; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import bbo", set()),
        ("import bbo.cli", set()),
        ("import experiments.compare.cli", set()),
        ("import bbo.ledger", set()),
        ("import bbo.tables", {"pandas"}),
        ("import smc.sampler", {"torch"}),
        ("import oracles.airfoil", {"torch"}),
        ("import oracles.images.reward, oracles.images.aesthetic, oracles.images.clip_rewards", {"torch"}),
        ("import oracles.images.image_reward, oracles.images.convert, bbo.clip_features", {"torch"}),
        ("import surrogate.ensemble, surrogate.acquisition, surrogate.features", {"torch"}),
        ("import bbo.executor, bbo.potential", {"torch", "botorch", "gpytorch"}),
        ("import bbo.campaign, bbo.config.plan, bbo.places", {"torch", "botorch", "gpytorch", "pandas"}),
        (
            "from bbo.config.models import campaign_file_model; campaign_file_model()",
            {"torch", "botorch", "gpytorch", "pandas"},
        ),
    ],
)
def test_imports_load_no_more_than_they_need(statement, allowed):
    assert loaded_by(statement) <= allowed


def test_names_of_bbo_are_found():
    import bbo

    assert bbo.Campaign.__module__ == "bbo.campaign"
    with pytest.raises(AttributeError, match="no attribute 'Campain'"):
        bbo.Campain  # noqa: B018
