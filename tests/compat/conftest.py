"""Fixtures that several tests of the patches share."""

import pytest
import torch


@pytest.fixture
def no_safe_globals():
    """Empties torch's allow-list for one test and restores it."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(allowed)
