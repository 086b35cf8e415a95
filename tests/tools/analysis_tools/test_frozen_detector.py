"""Tests of tools/analysis_tools/frozen_detector.py."""

import json

import pytest
import torch
from narrow_config import CONFIG
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from synthetic_scenes.scenes import write_scenes

from ccop_mm.evaluation import load_model
from ccop_mm.evaluation.frozen_detector import measure_frozen_detector, read_frozen_detector_data
from ccop_mm.evaluation.frozen_detector_head import HeadRecipe

TOOL = 'analysis_tools/frozen_detector.py'


@pytest.fixture
def folder(tmp_path):
    write_scenes(tmp_path, num_train=8, num_val=4, size=(64, 96))
    (tmp_path / 'config.py').write_text(CONFIG)
    return tmp_path


def arguments(folder):
    names = dict(train_annotations='annotations/instances_train.json', train_images='images')
    names.update(annotations='annotations/instances_val.json', images='images')
    words = [word for name, path in names.items() for word in (f'--{name.replace("_", "-")}', folder / path)]
    return [*words, '--size', 64, '--epochs', 2]


def test_table_files_and_difference(folder, call_tool):
    options = [*arguments(folder), '--seeds', 3, 5, '--json', folder / 'random.json']
    code, output, _ = call_tool(TOOL, folder / 'config.py', *options, '--detections', folder / 'detections')
    assert code == 0
    report = json.loads((folder / 'random.json').read_text())
    data = read_frozen_detector_data(
        folder / 'annotations/instances_train.json',
        folder / 'images',
        folder / 'annotations/instances_val.json',
        folder / 'images',
    )
    recipe = HeadRecipe(epochs=2, min_steps=0)
    for number, seed in enumerate((3, 5)):  # each seed has random weights of its own
        model = load_model(folder / 'config.py', seed=seed)
        expected = measure_frozen_detector(model, data, size=64, seeds=(seed,), recipe=recipe)
        for task, metrics in report['metrics'].items():
            assert {name: values[number] for name, values in metrics.items()} == {
                name: values[0] for name, values in expected.metrics[task].items()
            }
            saved = json.loads((folder / f'detections/{task}-seed{seed}.json').read_text())
            assert saved == expected.detections[task][0]
    rows = {line.split()[0]: line for line in output.splitlines() if line.split()[0] in ('objects', 'classes')}
    mean = sum(report['metrics']['objects']['AP50']) / 2
    assert len(rows) == 2 and f'{100 * mean:.1f} ±' in rows['objects']

    torch.save({'state_dict': load_model(folder / 'config.py', seed=3).state_dict()}, folder / 'model.pth')
    words = [*arguments(folder), '--seeds', 3, '--tasks', 'classes', '--against', folder / 'random.json']
    code, output, _ = call_tool(TOOL, folder / 'config.py', folder / 'model.pth', *words)
    assert code == 0
    assert output.splitlines()[-1].split() == ['classes', '+0.0', '+0.0', '+0.0']


def test_saved_detections_evaluated_by_hand(folder, call_tool):
    words = [*arguments(folder), '--tasks', 'classes', '--json', folder / 'a.json', '--detections', folder / 'found']
    assert call_tool(TOOL, folder / 'config.py', *words)[0] == 0
    truth = COCO(str(folder / 'annotations/instances_val.json'))
    evaluation = COCOeval(truth, truth.loadRes(str(folder / 'found/classes-seed0.json')), 'bbox')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    metrics = json.loads((folder / 'a.json').read_text())['metrics']['classes']
    assert [metrics[name][0] for name in ('AP', 'AP50', 'AP75')] == pytest.approx(evaluation.stats[:3].tolist())


def test_options(folder, call_tool):
    options = ['--features', 'neck', '--no-flip', '--max-train-images', 6, '--max-images', 3, '--tasks', 'objects']
    code, output, _ = call_tool(
        TOOL, folder / 'config.py', *arguments(folder), *options, '--json', folder / 'neck.json', '--batch-size', 2
    )
    assert code == 0
    settings = json.loads((folder / 'neck.json').read_text())['settings']
    assert settings['levels'] == ['P3', 'P4', 'P5'] and settings['flip'] is False
    assert (settings['num_train_images'], settings['num_images'], settings['epochs']) == (6, 3, 2)
    assert 'P3, P4, P5 of 3 images, trained on 6' in output


@pytest.mark.parametrize(
    'words, value',
    [
        (['--annotations', 'absent.json'], 'absent.json'),
        (['--train-images', 'absent'], 'absent'),
        (['--max-memory', '1e-9'], '1e-09'),
        (['--epochs', '0'], '0'),
        (['--seeds', '1', '1'], '[1, 1]'),
        (['--against', 'absent.json'], 'absent.json'),
    ],
)
def test_bad_input_is_reported_in_one_line(folder, call_tool, words, value):
    code, _, error = call_tool(TOOL, folder / 'config.py', *arguments(folder), *words)
    assert code == 2
    (line,) = [line for line in error.splitlines() if line.startswith('error: ')]
    assert value in line


def test_unknown_choices(folder, call_tool):
    for words in (['--tasks', 'masks'], ['--features', 'head'], ['--seeds', 'a']):
        assert call_tool(TOOL, folder / 'config.py', *arguments(folder), *words)[0] == 2
