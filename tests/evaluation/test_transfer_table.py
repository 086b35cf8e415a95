import json

import pytest

from ccop_mm.evaluation.transfer_table import Run, format_table, read_run
from ccop_mm.utils.errors import InputError


def write_log(work_dir, start, lines, config=None):
    """Writes the log of one start of a run, in the layout of mmengine's local visualization backend."""
    folder = work_dir / start / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text(
        '\n'.join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    for path in (folder / 'config.py', work_dir / 'detector.py') if config else ():
        path.write_text(config)


def config(checkpoint, loop='max_iters=4'):
    init = f"dict(type='CCOPPretrained', checkpoint={checkpoint!r})" if checkpoint else 'None'
    return f'model = dict(init_cfg={init})\ntrain_cfg = dict({loop})\n'


def evaluation(step, box, **others):
    return {'coco/bbox_mAP': box, 'coco/bbox_mAP_50': box * 2, 'coco/bbox_mAP_75': box / 2, 'step': step, **others}


def test_last_evaluation_over_all_starts_is_used(tmp_path):
    training = {'lr': 0.1, 'loss': 2.0, 'step': 4}
    write_log(
        tmp_path, '20260101_000000', [training, evaluation(2, 0.1), evaluation(3, 0.9), '{"coco/bb'], config('a/b.pth')
    )
    # The config of a resumed start has no initializer. Its log repeats the steps after the checkpoint.
    write_log(tmp_path, '20260102_000000', [evaluation(3, 0.2), training, evaluation(4, 0.3)], config(None))
    run = read_run(tmp_path)
    assert (run.name, run.init, run.step, run.last_step, run.finished) == (tmp_path.name, 'b.pth', 4, 4, True)
    assert run.metrics == {'bbox_mAP': 0.3, 'bbox_mAP_50': 0.6, 'bbox_mAP_75': 0.15}


@pytest.mark.parametrize(
    ('checkpoint', 'loop', 'init', 'finished'),
    [(None, 'max_epochs=2', 'random', True), ('x.pth', 'max_iters=3', 'x.pth', False)],
)
def test_initial_checkpoint_and_last_step_are_read_from_the_config(tmp_path, checkpoint, loop, init, finished):
    write_log(tmp_path, 'start', [evaluation(2, 0.1)], config(checkpoint, loop))
    run = read_run(tmp_path)
    assert (run.init, run.finished) == (init, finished)


def test_missing_evaluation_or_directory(tmp_path):
    write_log(tmp_path / 'pretraining', 'start', [{'loss': 1.0, 'step': 1}])
    with pytest.raises(InputError, match='pretraining'):
        read_run(tmp_path / 'pretraining')
    with pytest.raises(InputError, match='absent'):
        read_run(tmp_path / 'absent')


RUNS = [
    Run('mask', 'ccop.pth', 90000, 90000, {f'{k}_mAP{s}': 0.4 for k in ('bbox', 'segm') for s in ('', '_50', '_75')}),
    Run('retina', 'random', 5, 90000, {'bbox_mAP': 0.3456, 'bbox_mAP_50': 0.05, 'bbox_mAP_75': -1.0}),
]


def test_text():
    assert format_table(RUNS).splitlines() == [
        'run     from       step  box AP  box AP50  box AP75  mask AP  mask AP50  mask AP75',
        'mask    ccop.pth  90000    40.0      40.0      40.0     40.0       40.0       40.0',
        'retina  random       5*    34.6       5.0         -        -          -          -',
        '',
        '* retina: step 5 of 90000, not finished',
    ]


def test_markdown_and_csv():
    lines = format_table(RUNS[1:], 'markdown').splitlines()
    assert lines[0] == '| run    | from   | step | box AP | box AP50 | box AP75 |'
    assert lines[1] == '| ------ | ------ | ---: | -----: | -------: | -------: |'
    assert lines[2] == '| retina | random |   5* |   34.6 |      5.0 |        - |'
    assert format_table(RUNS[1:], 'csv').splitlines() == [
        'run,from,step,box AP,box AP50,box AP75',
        'retina,random,5*,34.6,5.0,-',
    ]
