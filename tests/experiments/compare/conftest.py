"""What the tests of a comparison share."""

import pytest

from tests.experiments.compare.small import comparison


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """A small comparison that nobody changes."""
    return comparison(tmp_path_factory.mktemp("compare"))
