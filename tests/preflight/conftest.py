import pytest
from small_detector import write_dataset


@pytest.fixture
def root(tmp_path):
    """Folder of a small dataset without errors."""
    write_dataset(tmp_path / 'data')
    return tmp_path / 'data'
