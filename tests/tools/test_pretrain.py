"""tools/pretrain.py: arguments, exit codes and messages. tests/pretrain/ runs the steps."""

import pytest
from synthetic_images import image_folder  # noqa: F401  fixture

from ccop_mm import apis

DETECTOR = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'


@pytest.fixture
def calls(monkeypatch):
    """Arguments of the calls of ``apis.pretrain``, which does nothing."""
    received = []

    def record(*args, **kwargs):
        received.append((args, kwargs))
        return 'summary'

    monkeypatch.setattr(apis, 'pretrain', record)
    return received


def test_arguments_are_passed_on(call_tool, calls):
    code, out, _ = call_tool('pretrain.py', DETECTOR, 'images', '--out', 'out')
    assert (code, out) == (0, 'summary\n')
    defaults = dict(
        weights=None,
        weights_prefix=None,
        num_gpus=1,
        view_size=None,
        batch_size=None,
        image_root=None,
        workers=None,
        options={},
    )
    assert calls.pop() == ((DETECTOR, 'images', 'out'), dict(defaults, epochs='auto', dry_run=False))
    options = ['--weights', 'w.pth', '--epochs', 3, '--view-size', 96, '--batch-size', 8, '--image-root', 'root']
    options += ['--weights-prefix', 'backbone.', '--gpus', 4]
    more = ['--workers', 2, '--dry-run', '--cfg-options', 'randomness.seed=3', 'model.box_jitter.noise=(.2,.8)']
    assert call_tool('pretrain.py', DETECTOR, 'images', '--out', 'out', *options, *more)[0] == 0
    assert calls.pop()[1] == dict(
        weights='w.pth',
        weights_prefix='backbone.',
        num_gpus=4,
        epochs=3,
        view_size=96,
        batch_size=8,
        image_root='root',
        workers=2,
        dry_run=True,
        options={'randomness.seed': 3, 'model.box_jitter.noise': (0.2, 0.8)},
    )


@pytest.mark.parametrize(
    'arguments',
    [(DETECTOR, 'images'), (DETECTOR, '--out', 'out'), (DETECTOR, 'images', '--out', 'out', '--epochs', 'many')],
)
def test_invalid_command_lines(arguments, call_tool, calls):
    code, _, err = call_tool('pretrain.py', *arguments)
    assert code == 2 and 'usage: ' in err
    assert calls == []


def test_interruption(call_tool, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(apis, 'pretrain', interrupt)
    code, out, err = call_tool('pretrain.py', DETECTOR, 'images', '--out', 'out')
    assert (code, out) == (130, '') and 'repeat' in err


@pytest.mark.parametrize(
    ('detector', 'options', 'named'),
    [
        ('mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py', [], 'one level'),
        ('mmdet::absent/absent.py', [], 'absent.py'),
        (DETECTOR, ['--view-size', 96], '72 px'),  # half of the images are not larger
        (DETECTOR, ['--weights', 'absent.pth'], 'absent.pth'),
        (DETECTOR, ['--batch-size', 8], '7 images'),
        (DETECTOR, ['--cfg-options', 'train_cfg.max_epochs=7'], '--epochs'),
        (DETECTOR, ['--cfg-options', 'model.momentum=x'], 'model'),
    ],
)
def test_bad_input_is_one_line(detector, options, named, call_tool, image_folder, tmp_path):  # noqa: F811
    code, out, err = call_tool('pretrain.py', detector, image_folder, '--out', tmp_path / 'out', *options, '--dry-run')
    assert code == 2
    lines = [line for line in err.splitlines() if line.startswith(('error: ', 'ERROR '))]
    assert len(lines) == 1 and named in lines[0]
    assert 'Traceback' not in err
