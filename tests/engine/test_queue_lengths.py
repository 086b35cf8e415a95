import logging

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger

from ccop_mm.engine.queue_lengths import fit_queues
from ccop_mm.errors import InputError
from ccop_mm.models.queue import suggest_lengths
from ccop_mm.proposals.sources import image_id_of
from ccop_mm.proposals.store import ProposalStore


@pytest.fixture
def config(tmp_path):
    """20 photos with 0 to 9 boxes each, of which at most 6 are used."""
    (tmp_path / 'images').mkdir()
    entries = []
    for number in range(20):
        name = f'{number}.png'
        cv2.imwrite(str(tmp_path / 'images' / name), np.full((20, 30, 3), number, np.uint8))
        entries.append((image_id_of(name), name, (20, 30), [[0, 0, 12, 12]] * (number % 10)))
    ProposalStore(entries).save(tmp_path / 'proposals.npz')
    dataset = dict(type='ProposalDataset', data_root=str(tmp_path), proposal_file='proposals.npz', num_proposals=6)
    return Config(dict(model=dict(type='CCOP', queue_len='auto'), train_dataloader=dict(dataset=dataset)))


@pytest.fixture
def records(caplog):
    """What is logged, at WARNING and above."""
    logger = MMLogger.get_instance('queues', log_level='INFO')
    logger.addHandler(caplog.handler)
    yield lambda: [record for record in caplog.records if record.levelno >= logging.WARNING]
    logger.removeHandler(caplog.handler)


EXPECTED = suggest_lengths(20, 0.25 * (0 + 1 + 2 + 3 + 4 + 5 + 6 + 6 + 6 + 6) / 10)


def test_auto_is_resolved_into_the_config(config, records):
    fit_queues(config)
    assert (config.model.queue_len, config.model.object_queue_len) == EXPECTED == (11, 11)
    assert not records()


def test_each_queue_by_itself(config):
    config.model.object_queue_len = 15
    fit_queues(config)
    assert (config.model.queue_len, config.model.object_queue_len) == (EXPECTED[0], 15)


def test_a_length_that_is_too_long_draws_one_warning_with_the_cure(config, records):
    config.model.queue_len = 65536
    fit_queues(config)
    assert config.model.queue_len == 65536, 'a warning, not a change'
    (record,) = records()
    assert 'queue_len=65536, object_queue_len=65536 is long for 20 photos' in record.message
    assert f'choose model.queue_len={EXPECTED[0]}, model.object_queue_len={EXPECTED[1]}' in record.message


def test_a_length_that_fits_draws_none(config, records):
    config.model.queue_len = 2 * EXPECTED[0]
    fit_queues(config)
    assert not records()


@pytest.mark.parametrize('length', ['auto', 10, 7])
def test_a_queue_that_moco_cannot_have_is_one_line(config, length):
    config.merge_from_dict({'model.type': 'MoCo', 'model.queue_len': length, 'train_dataloader.batch_size': 4})
    with pytest.raises(
        InputError, match=f'multiple of the 4 photos of a step, got {length}; choose model.queue_len=12'
    ):
        fit_queues(config)


def test_a_queue_that_is_too_long_for_moco_is_warned_of(config, records):
    config.merge_from_dict({'model.type': 'MoCo', 'model.queue_len': 24, 'train_dataloader.batch_size': 4})
    fit_queues(config)
    assert not records()
    config.model.queue_len = 28
    fit_queues(config)
    (record,) = records()
    assert 'queue_len=28 is long for 20 photos' in record.message and 'choose model.queue_len=12' in record.message


@pytest.mark.parametrize('changes', [{'model.type': 'SimSiam'}, {'train_dataloader.dataset.type': 'CocoDataset'}])
def test_other_models_and_data_sets_are_left_alone(config, changes):
    config.merge_from_dict(changes)
    fit_queues(config)
    assert config.model.queue_len == 'auto'


def test_fewer_photos_than_a_step_are_one_line(config):
    config.train_dataloader.batch_size = 21
    with pytest.raises(InputError, match='20 photos are fewer than the 21 of a step'):
        fit_queues(config)
