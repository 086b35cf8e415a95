"""The steps from a detector and images to a fine-tuning config: results, repetition, and invalid input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from ccop_mm.evaluation import load_model
from ccop_mm.pretrain import pretrain
from ccop_mm.pretrain.run import _apply_options, _initializer, _is_finished
from ccop_mm.proposals.store import ProposalStore
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.images import list_images
from ccop_mm.weights import read_state_dict

ROOT = Path(__file__).resolve().parents[2]


def run(detector, images, out, **arguments):
    """Runs two epochs of two steps, unless ``arguments`` say otherwise."""
    defaults = dict(epochs=2, batch_size=4, workers=1, progress=False)
    return pretrain(detector, images, out, **{**defaults, **arguments})


def save_proposals(images, path, skipped=()):
    """Writes a proposals file without a search; returns the images."""
    files = list_images(images)
    boxes = [[x, y, x + 30, y + 30] for x in (5, 60) for y in (10, 50)]
    entries = [(file.image_id, file.file_name, (96, 128), boxes) for file in files if file.file_name not in skipped]
    path.parent.mkdir(parents=True, exist_ok=True)
    ProposalStore(entries, skipped=dict.fromkeys(skipped, 'damaged')).save(path)
    return files


def build_detector(config):
    """Builds the detector of a fine-tuning config, with its initial weights."""
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(cfg.model)
        detector.init_weights()
    return detector


@pytest.mark.slow
def test_from_images_to_a_detector_with_the_weights(detector_config, images, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    result = run(detector_config, images, out)
    assert result.checkpoint == str(out / 'pretrain' / 'epoch_2.pth')
    assert (result.weights, result.finetune_config) == (out / 'weights.pth', out / 'finetune.py')
    assert '8 of' in str(result) and '1 unreadable' in str(result)
    assert f'python tools/train.py {out / "finetune.py"} --work-dir {out / "finetune"}' in str(result)
    weights = read_state_dict(str(result.weights))
    assert {key.partition('.')[0] for key in weights} == {'backbone', 'neck'}

    # The folder can be moved: the configs find their files.
    moved = tmp_path / 'moved'
    shutil.copytree(out, moved)
    with monkeypatch.context() as patch:
        patch.chdir('/')
        detector = build_detector(moved / 'finetune.py').eval()
    loaded = detector.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())
    ccop = load_model(moved / 'pretrain.py', result.checkpoint).eval()
    image = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        levels = detector.neck(detector.backbone(image))
        for level, expected in zip(levels, ccop.extract_feat(image), strict=False):
            torch.testing.assert_close(level, expected, rtol=0, atol=1e-5)

    # Nothing is repeated.
    times = {path: path.stat().st_mtime_ns for path in out.rglob('*') if path.suffix in ('.npz', '.pth', '.py')}
    assert str(run(detector_config, images, out)) == str(result)
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.slow
def test_a_killed_run_continues_and_ends_like_an_uninterrupted_one(detector_config, images, tmp_path):
    names = [path.relative_to(images).as_posix() for path in images.rglob('*.png')]
    (images / 'list.txt').write_text('\n'.join(names))
    tool = ROOT / 'tools' / 'pretrain.py'
    outs = tmp_path / 'killed', tmp_path / 'uninterrupted'

    def command(out):
        arguments = [
            detector_config,
            images / 'list.txt',
            '--out',
            out,
            '--epochs',
            6,
            '--batch-size',
            4,
            '--workers',
            1,
        ]
        return [sys.executable, tool, *map(str, arguments)]

    with open(tmp_path / 'log', 'w') as log:
        process = subprocess.Popen(command(outs[0]), stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 300
        while not list(outs[0].glob('pretrain/epoch_*.pth')) and process.poll() is None:
            assert time.monotonic() < deadline, (tmp_path / 'log').read_text()[-3000:]
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / 'log').read_text()[-3000:]
    assert not (outs[0] / 'weights.pth').exists()
    for out in outs:
        done = subprocess.run(command(out), capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
    states = [read_state_dict(str(out / 'weights.pth')) for out in outs]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert 'resume' in done.stdout or 'finished after 12 iterations' in done.stdout


@pytest.mark.slow
def test_continued_pretraining_starts_from_the_weights(detector_config, images, tmp_path):
    """With a learning rate of 0, the parameters of both encoders are those of the file."""
    torch.manual_seed(1)
    cfg = Config.fromfile(detector_config)
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(cfg.model)
        detector.init_weights()
    torch.save(dict(state_dict=detector.state_dict()), tmp_path / 'coco.pth')
    options = {'optim_wrapper.optimizer.lr': 0.0}
    result = run(detector_config, images, tmp_path / 'out', weights=tmp_path / 'coco.pth', options=options, epochs=1)
    assert str(tmp_path / 'coco.pth') in str(result)
    trained, loaded = read_state_dict(result.checkpoint), 0
    for name, value in detector.named_parameters():
        if name.startswith(('backbone.', 'neck.')) and name in trained:
            assert torch.equal(trained[name], value)
            assert torch.equal(trained[f'encoder_k.{name}'], value)
            loaded += 1
    assert loaded > 50
    # They are not needed any more.
    (tmp_path / 'coco.pth').unlink()
    repeated = run(detector_config, images, tmp_path / 'out', weights=tmp_path / 'coco.pth', options=options, epochs=1)
    assert str(repeated) == str(result)


def test_dry_run_measures_and_writes_only_the_configs(detector_config, images, tmp_path):
    result = run(detector_config, images, tmp_path / 'out', dry_run=True)
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'arguments.json',
        'finetune.py',
        'pretrain.py',
    ]
    assert (result.checkpoint, result.weights) == (None, None)
    assert 'proposals' in str(result).split('would run')[1] and '4 steps' in str(result)
    # The sizes are corrected as soon as the number of readable images is known.
    save_proposals(images, tmp_path / 'out' / 'proposals.npz', skipped=['damaged.jpg', '0.png', '1.png'])
    repeated = run(detector_config, images, tmp_path / 'out', dry_run=True)
    assert 'proposals' not in str(repeated).split('would run')[1] and '6 of' in str(repeated)
    cfg = Config.fromfile(tmp_path / 'out' / 'pretrain.py')
    assert cfg.model.queue_len == round(65536 / 118287 * 6)


def test_an_edited_config_is_used(detector_config, images, tmp_path):
    out = tmp_path / 'out'
    save_proposals(images, out / 'proposals.npz', skipped=['damaged.jpg'])
    run(detector_config, images, out, dry_run=True)
    path = out / 'pretrain.py'
    path.write_text(path.read_text().replace('max_epochs=2', 'max_epochs=7'))
    assert '14 steps' in str(run(detector_config, images, out, dry_run=True))
    with pytest.raises(InputError, match='epochs=2, now 3'):
        run(detector_config, images, out, dry_run=True, epochs=3)


@pytest.mark.parametrize('kind', ['folder', 'json', 'text'])
def test_written_dataset_has_the_images_of_the_source(kind, detector_config, images, tmp_path):
    (images / 'damaged.jpg').unlink()
    source, root = images, None
    names = [path.relative_to(images).as_posix() for path in images.rglob('*.png')]
    if kind == 'json':
        (tmp_path / 'annotations').mkdir()
        source = tmp_path / 'annotations' / 'list.json'
        source.write_text(json.dumps(dict(images=[dict(id=i, file_name=name) for i, name in enumerate(names)])))
    elif kind == 'text':
        source, root = tmp_path / 'list.txt', images
        source.write_text('\n'.join(names[:7]))
    files = list_images(source, root)
    boxes = [[0, 0, 30, 30]]
    out = tmp_path / 'out'
    out.mkdir()
    ProposalStore([(file.image_id, file.file_name, (96, 128), boxes) for file in files]).save(out / 'proposals.npz')
    run(detector_config, source, out, image_root=root, dry_run=True)
    dataset_cfg = Config.fromfile(out / 'pretrain.py').train_dataloader.dataset
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        dataset = DATASETS.build(dataset_cfg)
    assert {dataset.get_data_info(index)['img_path'] for index in range(len(dataset))} == {
        str(file.path) for file in files
    }
    assert len(dataset) == (7 if kind == 'text' else 8)


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (dict(epochs=0), 'epochs'),
        (dict(epochs='many'), 'many'),
        (dict(epochs=2.5), '2.5'),
        (dict(batch_size=0), 'batch_size'),
        (dict(batch_size=1), 'batch_size.*1'),
        (dict(batch_size=4, num_gpus=3), 'batch of 12'),
        (dict(num_gpus=0), 'num_gpus'),
        (dict(weights_prefix='a.'), "weights_prefix='a.'"),
        (dict(options={'train_cfg.max_epochs': 7}), '--epochs'),
        (dict(options={'train_cfg': {'max_epochs': 7}}), '--epochs'),
        (dict(options={'train_dataloader.batch_size': 7}), '--batch-size'),
        (dict(options={'work_dir': 'elsewhere'}), 'work_dir'),
        (dict(options={'model.object_pool.strides': (7,)}), '7'),
        (dict(options={'optim_wrapper.optimizer.lr': 'fast'}), 'optim_wrapper'),
        (dict(options={'train_dataloader.dataset.pipeline.0.bogus': 1}), 'bogus'),
        (dict(options={'custom_hooks.1.bogus': 1}), 'bogus'),
        (dict(batch_size=9), '8 images'),
        (dict(view_size=-1), 'view_size'),
        (dict(view_size=224), '96 px'),
        (dict(workers=0), 'workers'),
        (dict(weights='absent.pth'), 'absent.pth'),
        (dict(options={'optim_wraper.optimizer.lr': 1}), 'optim_wraper'),
        (dict(options={'train_dataloader.dataset.pipeline.7.type': 'X'}), '7'),
        (dict(detector='mmdet::detr/detr_r18_8xb2-500e_coco.py'), 'one level'),
        (dict(detector='absent.py'), 'absent.py'),
        (dict(images='absent'), 'absent'),
    ],
)
def test_invalid_input_is_one_line(arguments, named, detector_config, images, tmp_path):
    save_proposals(images, tmp_path / 'out' / 'proposals.npz', skipped=['damaged.jpg'])
    detector, source = arguments.pop('detector', detector_config), arguments.pop('images', images)
    with pytest.raises(InputError, match=named) as caught:
        run(detector, source, tmp_path / 'out', **arguments, dry_run=True)
    assert '\n' not in str(caught.value)
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['proposals.npz']


def test_weights_of_another_width(detector_config, images, tmp_path):
    torch.save({'backbone.stem.0.conv.weight': torch.zeros(24, 3, 3, 3)}, tmp_path / 'wide.pth')
    with pytest.raises(InputError, match='wide.pth'):
        run(detector_config, images, tmp_path / 'out', weights=tmp_path / 'wide.pth')
    assert not (tmp_path / 'out').exists()


def test_weights_of_a_detector_without_any(detector_config, images, tmp_path):
    detector_config.write_text(detector_config.read_text().replace('widen_factor', 'init_cfg=None, widen_factor'))
    with pytest.raises(InputError, match='init_cfg'):
        run(detector_config, images, tmp_path / 'out', weights='init_cfg')


def test_weights_of_the_detectors_config(detector_config, images, tmp_path):
    text = detector_config.read_text()
    init_cfg = "init_cfg=dict(checkpoint='own.pth'), widen_factor"
    detector_config.write_text(text.replace('widen_factor', init_cfg))
    with pytest.raises(InputError, match='own.pth'):
        run(detector_config, images, tmp_path / 'out', weights='init_cfg')


def test_proposals_of_other_images(detector_config, images, tmp_path):
    save_proposals(images, tmp_path / 'out' / 'proposals.npz', skipped=['damaged.jpg'])
    (images / '0.png').rename(images / 'renamed.png')
    with pytest.raises(InputError, match='renamed.png'):
        run(detector_config, images, tmp_path / 'out', dry_run=True)
    (images / 'renamed.png').unlink()
    with pytest.raises(InputError, match='0.png'):
        run(detector_config, images, tmp_path / 'out', dry_run=True)


def test_images_without_boxes_smaller_than_the_detector_needs(detector_config, images, tmp_path):
    files = list_images(images)
    (tmp_path / 'out').mkdir()
    entries = [(file.image_id, file.file_name, (40, 60), []) for file in files]
    ProposalStore(entries).save(tmp_path / 'out' / 'proposals.npz')
    with pytest.raises(InputError, match='40 px.*64 px'):
        run(detector_config, images, tmp_path / 'out', dry_run=True)


def test_options_change_the_written_settings():
    settings = dict(default_scope='mmselfsup', model=dict(type='CCOP', momentum=0.99), randomness=dict(seed=0))
    changed = _apply_options(settings, {'model.momentum': 0.9, 'randomness.seed': 3})
    assert changed['model'] == dict(type='CCOP', momentum=0.9) and changed['randomness'] == dict(seed=3)
    assert settings['model']['momentum'] == 0.99


@pytest.mark.parametrize(
    ('train_cfg', 'meta', 'expected'),
    [
        (dict(max_epochs=3), dict(epoch=3, iter=30), True),
        (dict(max_epochs=3), dict(epoch=2, iter=20), False),
        (dict(max_iters=30), dict(epoch=0, iter=30), True),
        (dict(max_iters=30), dict(epoch=9, iter=29), False),
    ],
)
def test_finished_checkpoints(train_cfg, meta, expected):
    assert _is_finished(Config(dict(train_cfg=train_cfg)), meta) is expected


@pytest.mark.parametrize(
    'arguments', [dict(options={'model.momentum': 'x'}), dict(batch_size=10), dict(view_size=128), dict(num_gpus=3)]
)
def test_errors_precede_the_search(arguments, detector_config, images, tmp_path, monkeypatch):
    def search(*args, **kwargs):
        raise AssertionError('searched')

    monkeypatch.setattr('ccop_mm.pretrain.run.generate_proposals', search)
    with pytest.raises(AssertionError, match='searched'):
        run(detector_config, images, tmp_path / 'out')
    with pytest.raises(InputError) as caught:
        run(detector_config, images, tmp_path / 'out', **arguments)
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'out').exists()


def test_wrong_image_root(detector_config, images, tmp_path):
    (tmp_path / 'list.json').write_text(
        json.dumps(dict(images=[dict(id=1, file_name='0.png'), dict(id=2, file_name='1.png')]))
    )
    (tmp_path / 'other').mkdir()
    with pytest.raises(InputError, match=f'0.png is missing.*{tmp_path / "other"}.*--image-root'):
        run(detector_config, tmp_path / 'list.json', tmp_path / 'out', image_root=tmp_path / 'other', batch_size=2)
    assert not (tmp_path / 'out').exists()


def test_proposals_without_a_readable_image_are_not_kept(detector_config, images, tmp_path, monkeypatch):
    def generate(files, out, **_):
        ProposalStore([], skipped={file.file_name: 'damaged' for file in files}).save(out)

    monkeypatch.setattr('ccop_mm.pretrain.run.generate_proposals', generate)
    with pytest.raises(InputError, match='9 images'):
        run(detector_config, images, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_json_with_absolute_names(detector_config, images, tmp_path):
    paths = sorted(images.rglob('*.png'))
    source = tmp_path / 'list.json'
    source.write_text(json.dumps(dict(images=[dict(id=i, file_name=str(path)) for i, path in enumerate(paths)])))
    files = list_images(source)
    (tmp_path / 'out').mkdir()
    entries = [(file.image_id, file.file_name, (96, 128), [[0, 0, 30, 30]]) for file in files]
    ProposalStore(entries).save(tmp_path / 'out' / 'proposals.npz')
    run(detector_config, source, tmp_path / 'out', dry_run=True)
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        dataset = DATASETS.build(Config.fromfile(tmp_path / 'out' / 'pretrain.py').train_dataloader.dataset)
    assert [dataset.get_data_info(index)['img_path'] for index in range(8)] == list(map(str, paths))


def test_several_gpus(detector_config, images, tmp_path, monkeypatch):
    """The sizes are those of the total batch; another command trains."""
    out = tmp_path / 'out'
    monkeypatch.chdir(tmp_path)
    save_proposals(images, out / 'proposals.npz', skipped=['damaged.jpg'])
    result = run(detector_config, images, out, batch_size=2, num_gpus=4)
    cfg = Config.fromfile(out / 'pretrain.py')
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=8)
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(0.3 * 8 / 256, rel=1e-2)
    assert 'tools/dist_train.sh out/pretrain.py 4 --resume' in str(result)
    assert (result.checkpoint, result.weights) == (None, None) and not (out / 'pretrain').exists()
    assert '2 steps' in str(run(detector_config, images, out, batch_size=2, num_gpus=4, dry_run=True))


@pytest.mark.parametrize(
    ('old', 'new', 'named'),
    [
        ('object_pool=dict(strides=(8, 16)),', '', None),
        ('lr=0.00469, ', '', None),
        ('max_epochs=2', 'val_interval=2', 'max_epochs'),
        ('optim_wrapper = ', 'unused = ', 'optim_wrapper'),
    ],
)
def test_incomplete_edits(old, new, named, detector_config, images, tmp_path):
    out = tmp_path / 'out'
    save_proposals(images, out / 'proposals.npz', skipped=['damaged.jpg'])
    run(detector_config, images, out, dry_run=True)
    text = (out / 'pretrain.py').read_text()
    assert old in text
    (out / 'pretrain.py').write_text(text.replace(old, new))
    if named is None:
        assert 'steps of' in str(run(detector_config, images, out, dry_run=True))
        return
    with pytest.raises(InputError, match=named) as caught:
        run(detector_config, images, out, dry_run=True)
    assert all(line.startswith('ERROR ') for line in str(caught.value).splitlines()[1:])


def test_comments_of_settings_that_options_changed(detector_config, images, tmp_path):
    out = tmp_path / 'out'
    save_proposals(images, out / 'proposals.npz', skipped=['damaged.jpg'])
    options = {'model.queue_len': 7, 'optim_wrapper.optimizer.lr': 0.25}
    run(detector_config, images, out, options=options, dry_run=True)
    text = (out / 'pretrain.py').read_text()
    assert 'queue_len=7,  # set by --cfg-options' in text and 'lr=0.25,  # set by --cfg-options' in text
    assert '0.55 epochs' not in text and '0.00469' not in text


def test_paths_of_initial_weights(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))

    def initializer(weights, prefix=None, own='own.pth'):
        return _initializer(SimpleNamespace(checkpoint=own, checkpoint_prefix='own.'), weights, prefix)

    assert initializer('~/a.pth') == dict(type='EncoderPretrained', checkpoint=str(tmp_path / 'home' / 'a.pth'))
    expected = dict(type='EncoderPretrained', checkpoint=str(tmp_path / 'own.pth'), prefix='own.')
    assert initializer('init_cfg') == expected
    assert initializer('init_cfg', 'b.') == dict(expected, prefix='b.')
    assert initializer('init_cfg', own='torchvision://resnet50')['checkpoint'] == 'torchvision://resnet50'
    assert initializer('https://x/y.pth', '') == dict(type='EncoderPretrained', checkpoint='https://x/y.pth', prefix='')


def test_weights_with_another_neck(detector_config, images, tmp_path):
    """The message names the option with which the backbone alone is loaded."""
    detector = build_detector(write_without_weights(detector_config))
    state = {key: value for key, value in detector.state_dict().items() if key != 'neck.out_convs.0.conv.weight'}
    torch.save(dict(state_dict=state), tmp_path / 'other.pth')
    save_proposals(images, tmp_path / 'out' / 'proposals.npz', skipped=['damaged.jpg'])
    arguments = dict(weights=tmp_path / 'other.pth', dry_run=True)
    with pytest.raises(InputError, match="--weights-prefix 'backbone.'"):
        run(detector_config, images, tmp_path / 'out', **arguments)
    assert 'steps of' in str(run(detector_config, images, tmp_path / 'out', weights_prefix='backbone.', **arguments))


def write_without_weights(detector_config):
    """Writes the detector without the weights of its backbone; returns the config file."""
    path = detector_config.with_name('random.py')
    path.write_text(detector_config.read_text().replace('widen_factor', 'init_cfg=None, widen_factor'))
    return path
