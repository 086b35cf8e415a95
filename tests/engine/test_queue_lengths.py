import logging

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger

from ccop_mm.engine.queue_lengths import fit_queues
from ccop_mm.models.queue import suggest_lengths
from ccop_mm.proposals.store import ProposalStore
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import image_id_from_path


@pytest.fixture
def config(tmp_path):
    """Config for 20 images with 0 to 9 proposals each, of which at most 6 are used."""
    (tmp_path / 'images').mkdir()
    entries = []
    for number in range(20):
        name = f'{number}.png'
        cv2.imwrite(str(tmp_path / 'images' / name), np.full((20, 30, 3), number, np.uint8))
        entries.append((image_id_from_path(name), name, (20, 30), [[0, 0, 12, 12]] * (number % 10)))
    ProposalStore(entries).save(tmp_path / 'proposals.npz')
    dataset = dict(type='ProposalDataset', data_root=str(tmp_path), proposal_file='proposals.npz', num_proposals=6)
    return Config(dict(model=dict(type='CCOP', queue_len='auto'), train_dataloader=dict(dataset=dataset)))


@pytest.fixture
def records(caplog):
    """Returns the log records at level WARNING and above."""
    logger = MMLogger.get_instance('queues', log_level='INFO')
    logger.addHandler(caplog.handler)
    yield lambda: [record for record in caplog.records if record.levelno >= logging.WARNING]
    logger.removeHandler(caplog.handler)


# Lengths for the mean number of objects in both views.
EXPECTED = suggest_lengths(20, 0.25 * (0 + 1 + 2 + 3 + 4 + 5 + 6 + 6 + 6 + 6) / 10)


def test_auto_is_resolved(config, records):
    fit_queues(config)
    assert (config.model.queue_len, config.model.object_queue_len) == EXPECTED == (11, 11)
    assert not records()


def test_auto_applies_to_one_queue(config):
    config.model.object_queue_len = 15
    fit_queues(config)
    assert (config.model.queue_len, config.model.object_queue_len) == (EXPECTED[0], 15)


def test_too_long_queues_cause_one_warning_with_suggested_lengths(config, records):
    config.model.queue_len = 65536
    fit_queues(config)
    assert config.model.queue_len == 65536, 'fixed lengths are not changed'
    (record,) = records()
    assert 'queue_len=65536, object_queue_len=65536' in record.message and '20 images' in record.message
    assert f'model.queue_len={EXPECTED[0]}, model.object_queue_len={EXPECTED[1]}' in record.message


def test_tolerated_length_causes_no_warning(config, records):
    config.model.queue_len = 2 * EXPECTED[0]
    fit_queues(config)
    assert not records()


@pytest.mark.parametrize('length', ['auto', 10, 7])
def test_invalid_queue_length_of_moco(config, length):
    config.merge_from_dict({'model.type': 'MoCo', 'model.queue_len': length, 'train_dataloader.batch_size': 4})
    with pytest.raises(InputError, match=rf'batch size 4, got {length}; .*model\.queue_len=12'):
        fit_queues(config)


def test_too_long_queue_of_moco_causes_warning(config, records):
    config.merge_from_dict({'model.type': 'MoCo', 'model.queue_len': 24, 'train_dataloader.batch_size': 4})
    fit_queues(config)
    assert not records()
    config.model.queue_len = 28
    fit_queues(config)
    (record,) = records()
    assert 'queue_len=28' in record.message and '20 images' in record.message
    assert 'model.queue_len=12' in record.message


@pytest.mark.parametrize('changes', [{'model.type': 'SimSiam'}, {'train_dataloader.dataset.type': 'CocoDataset'}])
def test_other_models_and_datasets_are_not_changed(config, changes):
    config.merge_from_dict(changes)
    fit_queues(config)
    assert config.model.queue_len == 'auto'


def test_dataset_smaller_than_batch(config):
    config.train_dataloader.batch_size = 21
    with pytest.raises(InputError, match='20 images.* 21;'):
        fit_queues(config)


def test_batch_size_counts_all_processes_before_their_group_exists(config, monkeypatch):
    config.train_dataloader.batch_size = 5
    config.launcher = 'pytorch'
    monkeypatch.setenv('WORLD_SIZE', '4')
    fit_queues(config)
    monkeypatch.setenv('WORLD_SIZE', '5')
    with pytest.raises(InputError, match='20 images.* 25'):
        fit_queues(config)
