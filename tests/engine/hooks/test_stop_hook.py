import itertools
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from record_run import SEND, read_lines
from small_transfer import CONFIGS, coco_data, make_small, narrow_model, read_config
from synthetic_scenes.scenes import write_scenes
from torch.utils._pytree import tree_flatten

from ccop_mm.engine import launch
from ccop_mm.engine.hooks.stop_hook import StoppedBySignal, resume_command
from ccop_mm.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
TRAIN = ROOT / 'tools' / 'train.py'
SAVE = dict(type='SafeCheckpointHook', interval=1, max_keep_ckpts=1)
NAMES = map('stop_hook_{}'.format, itertools.count())  # runs of equal names would share a message hub


@pytest.fixture(autouse=True)
def interruptible():
    """Handles SIGINT even if the tests run in the background of a shell, where it is ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture
def pretraining(small_config, monkeypatch):
    """``pretraining(work_dir, **options) -> Config``: 3 epochs of 4 iterations, with a schedule and dropout."""
    monkeypatch.delenv(SEND, raising=False)

    def make(work_dir, checkpoint=SAVE, **options):
        cfg = small_config(
            work_dir=work_dir,
            **{
                'train_cfg.max_epochs': 3,
                'train_dataloader.sampler.shuffle': True,
                'default_hooks.sampler_seed': dict(type='IterationSeedHook'),
                'experiment_name': next(NAMES),
                **options,
            },
        )
        cfg.default_hooks.checkpoint = dict(checkpoint)
        cfg.custom_imports.imports.append('record_run')
        cfg.custom_hooks.extend([dict(type='ViewStatisticsHook'), dict(type='RecordRun')])
        cfg.param_scheduler = [
            dict(type='CosineAnnealingLR', T_max=3, by_epoch=True, convert_to_iter_based=True),
            dict(type='StepLR', step_size=1, gamma=0.5, by_epoch=True),
        ]
        return cfg

    return make


def train(cfg, monkeypatch, send=None, resume=False):
    """Runs the training and returns the exit code of the process."""
    monkeypatch.setenv(SEND, send or '')
    try:
        if resume:
            launch.set_resume(cfg, 'auto')
        launch.train(cfg)
    except StoppedBySignal as stopped:
        return stopped.code
    return 0


def steps(work_dir, rank=0):
    return read_lines(Path(work_dir, f'steps_rank_{rank}.jsonl'))


def final_state(path):
    checkpoint = torch.load(path, weights_only=True)
    return tree_flatten([checkpoint[key] for key in ('state_dict', 'optimizer', 'param_schedulers')])[0]


def assert_equal_states(found, expected):
    assert len(found) == len(expected) > 100
    for value, other in zip(found, expected, strict=True):
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_run_stopped_at_any_iteration_resumes_at_the_next_one(pretraining, monkeypatch, capsys, tmp_path, workers):
    loader = {'train_dataloader.num_workers': workers}
    assert train(pretraining('uninterrupted', **loader), monkeypatch) == 0
    expected = steps(tmp_path / 'uninterrupted')
    assert [step['batch'] for step in expected] == [0, 1, 2, 3] * 3
    for epoch in range(3):
        images = [image for step in expected if step['epoch'] == epoch for image in step['images']]
        assert sorted(images) == list(range(10, 18))
    # First, in the middle and last iteration of an epoch, and the last one of the training.
    for number, (name, code, at) in enumerate(
        [('SIGTERM', 143, 1), ('SIGUSR1', 138, 6), ('SIGINT', 130, 8), ('SIGTERM', 143, 12)]
    ):
        work_dir = tmp_path / f'stopped{number}'
        capsys.readouterr()
        assert train(pretraining(work_dir.name, **loader), monkeypatch, f'{name}@{at}') == code
        line = capsys.readouterr().err.splitlines()[-1]
        assert f'{name} after iteration {at} of 12 (epoch {(at + 3) // 4} of 3)' in line
        assert f'{work_dir}/iter_{at}.pth' in line and '--resume' in line
        assert (work_dir / 'last_checkpoint').read_text() == f'{work_dir}/iter_{at}.pth'
        assert [step['iteration'] for step in steps(work_dir)] == list(range(1, at + 1))
        assert train(pretraining(work_dir.name, **loader), monkeypatch, resume=True) == 0
        assert steps(work_dir) == expected
        assert sorted(path.name for path in work_dir.glob('*.pth')) == ['epoch_3.pth']
        assert_equal_states(
            final_state(work_dir / 'epoch_3.pth'), final_state(tmp_path / 'uninterrupted' / 'epoch_3.pth')
        )


@pytest.mark.slow
def test_second_stop_replaces_the_checkpoint_of_the_first(pretraining, monkeypatch, tmp_path):
    assert train(pretraining('work'), monkeypatch, 'SIGTERM@2') == 143
    assert train(pretraining('work'), monkeypatch, 'SIGTERM@3', resume=True) == 143
    assert [path.name for path in (tmp_path / 'work').glob('*.pth')] == ['iter_3.pth']
    assert train(pretraining('work'), monkeypatch, resume=True) == 0
    assert [step['iteration'] for step in steps(tmp_path / 'work')] == list(range(1, 13))
    assert [path.name for path in (tmp_path / 'work').glob('*.pth')] == ['epoch_3.pth']


@pytest.mark.slow
def test_stop_waits_for_the_optimizer_step(pretraining, monkeypatch, tmp_path):
    accumulate = {'optim_wrapper.accumulative_counts': 2, 'train_cfg.max_epochs': 1}
    assert train(pretraining('uninterrupted', **accumulate), monkeypatch) == 0
    assert train(pretraining('work', **accumulate), monkeypatch, 'SIGTERM@1') == 143
    assert len(steps(tmp_path / 'work')) == 2
    assert train(pretraining('work', **accumulate), monkeypatch, resume=True) == 0
    assert steps(tmp_path / 'work') == steps(tmp_path / 'uninterrupted')


@pytest.mark.slow
def test_regular_checkpoint_within_an_epoch_is_resumed_within_it(pretraining, monkeypatch, tmp_path):
    regular = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=3, max_keep_ckpts=2))
    assert train(pretraining('work', **regular), monkeypatch) == 0
    expected = steps(tmp_path / 'work')
    for name in ('iter_12.pth', 'last_checkpoint', 'steps_rank_0.jsonl'):
        (tmp_path / 'work' / name).unlink()
    assert train(pretraining('work', **regular), monkeypatch, resume=True) == 0
    assert steps(tmp_path / 'work') == expected[9:]
    assert (tmp_path / 'work' / 'iter_9.pth').is_file(), 'a regular checkpoint is kept'


@pytest.mark.slow
@pytest.mark.parametrize('at', [6, 8], ids=['within an epoch', 'at its last iteration'])
def test_longer_training_continues_a_stopped_one_with_the_values_of_an_uninterrupted_one(
    pretraining, monkeypatch, tmp_path, at
):
    def longer(work_dir):
        cfg = pretraining(work_dir, **{'train_cfg.max_epochs': 5})
        cfg.param_scheduler[0].T_max = 5
        cfg.param_scheduler[1].gamma = 0.7
        return cfg

    assert train(longer('uninterrupted'), monkeypatch) == 0
    assert train(pretraining('work'), monkeypatch, f'SIGTERM@{at}') == 143
    assert train(longer('work'), monkeypatch, resume=True) == 0
    found, expected = ([step['logged'] for step in steps(tmp_path / name)] for name in ('work', 'uninterrupted'))
    assert len(found) == len(expected) == 20 and expected[0].keys() >= {'train/lr', 'train/zeta'}
    assert found[:at] != expected[:at] and found[at:] == expected[at:]
    states = [torch.load(tmp_path / name / 'epoch_5.pth', weights_only=True) for name in ('work', 'uninterrupted')]
    for scheduler, other in zip(*(state['param_schedulers'] for state in states), strict=True):
        assert scheduler == other


@pytest.mark.slow
def test_handlers_are_restored(pretraining, monkeypatch):
    original = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    short = {'train_cfg.max_epochs': 1}
    assert train(pretraining('finished', **short), monkeypatch) == 0
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == original
    assert train(pretraining('stopped', **short), monkeypatch, 'SIGTERM@1') == 143
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == original


@pytest.mark.parametrize(
    ('argv', 'command'),
    [
        (['tools/train.py', 'a.py'], 'python tools/train.py a.py --resume'),
        (['tools/train.py', 'a.py', '--resume'], 'python tools/train.py a.py --resume'),
        (['tools/train.py', 'a.py', '--resume', 'x.pth'], 'python tools/train.py a.py --resume'),
        (
            ['/x y/train.py', 'a.py', '--resume=x.pth', '--overwrite', '--cfg-options', 'a=1'],
            "python '/x y/train.py' a.py --cfg-options a=1 --resume",
        ),
    ],
)
def test_resume_command(argv, command):
    assert resume_command(argv) == command


def test_resume_command_of_the_console_command():
    script = '/env/lib/python3.12/site-packages/ccop_mm/.mim/tools/train.py'
    assert resume_command([script, 'a.py', '--resume', 'b.pth']) == 'ccop-mm train a.py --resume'


def test_resume_command_of_a_tool_that_resumes_by_itself():
    assert resume_command(['tools/pretrain.py', 'detector.py', 'images']) == 'repeat the command'


def test_resume_command_of_other_programs():
    assert '--resume' in resume_command(['notebook']) and 'notebook' not in resume_command(['notebook'])


def start(config, *options, send='', **variables):
    """Starts tools/train.py in a process group of its own."""
    path = os.pathsep.join([str(ROOT / 'tests' / 'helpers'), str(ROOT)])
    environment = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1', SEND: send, **variables}
    command = [sys.executable, str(TRAIN), str(config), *options]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process, timeout=120):
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def processes_with(text):
    """Returns the running processes whose group or command line contains a text."""
    found = subprocess.run(['ps', '-wweo', 'pgid,stat,args'], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in found.splitlines()[1:]]
    return [row for row in rows if (row[0] == text or text in row[2]) and not row[1].startswith('Z')]


@pytest.mark.slow
@pytest.mark.parametrize('name, code', [('SIGTERM', 143), ('SIGINT', 130)])
def test_signal_to_all_processes_of_a_run_with_workers(pretraining, tmp_path, name, code):
    """As by Ctrl-C in a terminal, torchrun and slurm: workers get the signal, too."""
    cfg = pretraining('work', **{'train_dataloader.num_workers': 2, 'log_level': 'INFO'})
    cfg.dump(tmp_path / 'config.py')
    process = start(tmp_path / 'config.py', send=f'{name}@6:group')
    assert (finish_code := finish(process))[0] == code, finish_code[1]
    lines = finish_code[1].splitlines()
    (line,) = [line for line in lines if 'iter_6.pth' in line]
    assert 'Traceback' not in finish_code[1] and line.endswith(f'train.py {tmp_path}/config.py --resume')
    assert not processes_with(str(process.pid))
    assert not list((tmp_path / 'work').glob('.*.tmp'))


KILLED_PARENT = """
import os, signal, sys, time
from torch.utils.data import DataLoader
from ccop_mm.engine.hooks import stop_hook

class Texts:
    def __len__(self):
        return 100

    def __getitem__(self, index):
        return 'a' * 10**6  # more than a pipe can contain

class SlowStart(stop_hook._ShieldedWorker):
    def __call__(self, worker):
        time.sleep(2)
        super().__call__(worker)

moment = sys.argv[1]
if moment == 'starting':
    stop_hook._ShieldedWorker = SlowStart
loader = DataLoader(Texts(), batch_size=2, num_workers=1, prefetch_factor=4)
stop_hook._shield_workers(loader)
batches = iter(loader)
if moment == 'writing':
    next(batches)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize('moment', ['starting', 'writing'])
def test_workers_end_if_their_parent_is_killed(tmp_path, moment):
    (tmp_path / 'parent.py').write_text(KILLED_PARENT)
    command = [sys.executable, str(tmp_path / 'parent.py'), moment]
    assert subprocess.run(command, env={**os.environ, 'PYTHONPATH': str(ROOT)}).returncode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while running := processes_with(command[1]):
        assert time.monotonic() < deadline, running
        time.sleep(0.2)


@pytest.mark.slow
def test_second_interrupt_aborts_at_once(pretraining, tmp_path):
    cfg = pretraining('work')
    # A step that does not end: the first image takes a minute to load.
    (tmp_path / 'wait.py').write_text(
        'import time\n'
        'from mmcv.transforms import TRANSFORMS, BaseTransform\n'
        '@TRANSFORMS.register_module()\n'
        'class Wait(BaseTransform):\n'
        '    def transform(self, results):\n'
        "        print('waiting', flush=True)\n"
        '        time.sleep(60)\n'
        '        return results\n'
    )
    cfg.custom_imports.imports.append('wait')
    cfg.train_dataloader.dataset.pipeline.insert(0, dict(type='Wait'))
    cfg.dump(tmp_path / 'config.py')
    path = os.pathsep.join([str(ROOT / 'tests' / 'helpers'), str(ROOT), str(tmp_path)])
    process = start(tmp_path / 'config.py', PYTHONPATH=path)
    while 'waiting' not in process.stdout.readline():
        assert process.poll() is None
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert 'Ctrl-C' in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    code, _ = finish(process)
    assert code == -signal.SIGINT and time.monotonic() - started < 30
    assert not list((tmp_path / 'work').glob('*.pth'))


@pytest.fixture
def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def start_ranks(config, port, send=''):
    common = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'CUDA_VISIBLE_DEVICES': ''}
    return [
        start(config, '--launcher', 'pytorch', *(['--resume'] if not send else []), send=send, RANK=rank, **common)
        for rank in ('0', '1')
    ]


@pytest.mark.slow
def test_all_processes_stop_after_the_same_iteration_if_one_gets_the_signal(pretraining, tmp_path, free_port):
    options = {'train_dataloader.batch_size': 1}
    for name in ('uninterrupted', 'work'):
        cfg = pretraining(name, **options)
        cfg.dump(tmp_path / f'{name}.py')
    done = [finish(process) for process in start_ranks(tmp_path / 'uninterrupted.py', free_port, send='SIGTERM@never')]
    assert [code for code, _ in done] == [0, 0], done[0][1][-3000:]
    done = [finish(process) for process in start_ranks(tmp_path / 'work.py', free_port, send='SIGTERM@5:1')]
    assert [code for code, _ in done] == [143, 143], done[0][1][-3000:]
    assert sum('iter_6.pth' in output for _, output in done) == 1, 'one line, of the first rank'
    done = [finish(process) for process in start_ranks(tmp_path / 'work.py', free_port)]
    assert [code for code, _ in done] == [0, 0], done[0][1][-3000:]
    for rank in range(2):
        assert steps(tmp_path / 'work', rank) == steps(tmp_path / 'uninterrupted', rank)
    assert len(steps(tmp_path / 'work')) == 12
    assert_equal_states(*(final_state(tmp_path / name / 'epoch_3.pth') for name in ('work', 'uninterrupted')))


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL], ids=lambda number: number.name)
def test_signal_to_torchrun_stops_its_processes(pretraining, tmp_path, free_port, number):
    """SIGKILL, too: torchrun starts each process in a session of its own, where it would continue without torchrun."""
    options = {'train_cfg.max_epochs': 100, 'train_dataloader.num_workers': 1}
    pretraining('work', **options).dump(tmp_path / 'config.py')
    path = os.pathsep.join([str(ROOT / 'tests' / 'helpers'), str(ROOT)])
    environment = {
        **{'PYTHON': sys.executable, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'},
        **{'PORT': str(free_port), 'CUDA_VISIBLE_DEVICES': ''},
    }
    with (tmp_path / 'output').open('w') as output:
        launcher = subprocess.Popen(
            ['bash', str(ROOT / 'tools' / 'dist_train.sh'), str(tmp_path / 'config.py'), '2'],
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
        )
    deadline = time.monotonic() + 120
    while len(steps(tmp_path / 'work')) < 3:
        assert launcher.poll() is None and time.monotonic() < deadline, (tmp_path / 'output').read_text()[-3000:]
        time.sleep(0.05)
    launcher.send_signal(number)
    assert launcher.wait(120) != 0
    while running := processes_with(str(tmp_path / 'config.py')):
        assert time.monotonic() < deadline, running
        time.sleep(0.2)
    (checkpoint,) = (tmp_path / 'work').glob('iter_*.pth')
    assert [len(steps(tmp_path / 'work', rank)) for rank in range(2)] == [int(checkpoint.stem.partition('_')[2])] * 2
    received = 'SIGTERM' if number == signal.SIGKILL else number.name
    lines = [line for line in (tmp_path / 'output').read_text().splitlines() if str(checkpoint) in line]
    assert len(lines) == 1 and received in lines[0]


# Transfer: iteration-based loop, infinite sampler, AspectRatioBatchSampler, augmentation of mmdet.

R18 = CONFIGS / 'transfer/mask_rcnn/mask-rcnn_r18-fpn_random_1x_coco.py'


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    """Image folder and annotations of twelve small scenes."""
    root = tmp_path_factory.mktemp('scenes')
    return root / 'images', write_scenes(root, num_train=1, num_val=12, size=(64, 96))['val']


@pytest.fixture
def transfer(scenes, tmp_path, monkeypatch):
    """``transfer(work_dir, workers) -> Config`` of a detector: 8 iterations of 2 images, validation every 4."""
    monkeypatch.delenv(SEND, raising=False)
    monkeypatch.setenv('PYTHONPATH', str(ROOT / 'tests' / 'helpers'))

    def make(work_dir, workers=0):
        cfg = read_config(R18)
        cfg = make_small(R18, {**narrow_model(cfg, 6), **coco_data(cfg, *scenes, num_images=12)}, tmp_path / work_dir)
        cfg.merge_from_dict(
            {
                'train_cfg.max_iters': 8,
                'train_cfg.val_interval': 4,
                'train_dataloader.num_workers': workers,
                'val_dataloader.dataset.indices': 3,
                'val_dataloader.batch_size': 1,
                'randomness': dict(seed=3),
                'log_level': 'ERROR',
                'experiment_name': next(NAMES),
            }
        )
        cfg.default_hooks.checkpoint = dict(SAVE, type='mmselfsup.SafeCheckpointHook', by_epoch=False, interval=100)
        cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=8)]
        cfg.train_dataloader.dataset.pipeline.insert(1, dict(type='RecordLoad', path=str(tmp_path / 'loaded')))
        cfg.custom_imports = dict(imports=['ccop_mm', 'record_run'], allow_failed_imports=False)
        cfg.custom_hooks = [dict(type='RecordRun')]
        return cfg

    return make


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 2])
def test_transfer_resumes_without_loading_earlier_batches(transfer, tmp_path, monkeypatch, workers):
    assert train(transfer('uninterrupted', workers), monkeypatch) == 0
    expected = steps(tmp_path / 'uninterrupted')
    validations = read_lines(tmp_path / 'uninterrupted' / 'validations.jsonl')
    assert [step['iteration'] for step in expected] == list(range(1, 9)) and [v[0] for v in validations] == [4, 8]
    # Anywhere, before a validation, within it, and at the end.
    for number, at in enumerate(['3', '4', 'val4', '8'] if workers == 0 else ['5']):
        work_dir = tmp_path / f'work{number}'
        assert train(transfer(work_dir.name, workers), monkeypatch, f'SIGTERM@{at}') == 143
        completed = len(steps(work_dir))
        (tmp_path / 'loaded').write_text('')
        assert train(transfer(work_dir.name, workers), monkeypatch, resume=True) == 0
        assert steps(work_dir) == expected
        assert read_lines(work_dir / 'validations.jsonl') == validations
        # Workers load batches in advance.
        prefetched = workers * 2
        loaded = len((tmp_path / 'loaded').read_text().splitlines())
        assert 2 * (8 - completed) <= loaded <= 2 * (8 - completed + prefetched)
        assert_equal_states(*(final_state(path / 'iter_8.pth') for path in (work_dir, tmp_path / 'uninterrupted')))


@pytest.mark.slow
def test_all_processes_stop_during_validation_if_one_gets_the_signal(transfer, tmp_path, free_port):
    for name in ('uninterrupted', 'work'):
        transfer(name).dump(tmp_path / f'{name}.py')
    done = [finish(process) for process in start_ranks(tmp_path / 'uninterrupted.py', free_port, send='SIGTERM@never')]
    assert [code for code, _ in done] == [0, 0], done[0][1][-3000:]
    done = [finish(process) for process in start_ranks(tmp_path / 'work.py', free_port, send='SIGTERM@val4:1')]
    assert [code for code, _ in done] == [143, 143], done[0][1][-3000:]
    assert sum('iter_4.pth' in output for _, output in done) == 1
    assert len(steps(tmp_path / 'work')) == 4 and not (tmp_path / 'work' / 'validations.jsonl').exists()
    done = [finish(process) for process in start_ranks(tmp_path / 'work.py', free_port)]
    assert [code for code, _ in done] == [0, 0], done[0][1][-3000:]
    for rank in range(2):
        assert steps(tmp_path / 'work', rank) == steps(tmp_path / 'uninterrupted', rank)
    validations = [read_lines(tmp_path / name / 'validations.jsonl') for name in ('work', 'uninterrupted')]
    assert validations[0] == validations[1] and len(validations[0]) == 4  # two by each process
    assert_equal_states(*(final_state(tmp_path / name / 'iter_8.pth') for name in ('work', 'uninterrupted')))


# Full disk.


@pytest.mark.slow
@pytest.mark.parametrize('save', [1, 2])
def test_full_disk_at_a_save_is_one_line(pretraining, monkeypatch, tmp_path, save):
    """``RLIMIT_FSIZE`` limits the size of files in the process, as a full disk or a quota does."""
    cfg = pretraining('work')
    cfg.dump(tmp_path / 'config.py')
    if save == 2:
        assert train(pretraining('work', **{'train_cfg.max_epochs': 3}), monkeypatch, 'SIGTERM@4') == 143
    size = 100_000
    process = subprocess.Popen(
        [sys.executable, str(TRAIN), str(tmp_path / 'config.py'), *(['--resume'] if save == 2 else [])],
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    line = errors.splitlines()[-1]
    assert re.search(rf'{tmp_path}/work/epoch_\d\.pth', line) and os.strerror(27) in line
    assert 'Traceback' not in errors
    assert not list((tmp_path / 'work').glob('.*.tmp'))
    assert len(list((tmp_path / 'work').glob('*.pth'))) == save - 1
    assert train(pretraining('work'), monkeypatch, resume=save == 2) == 0
    assert (tmp_path / 'work' / 'epoch_3.pth').is_file()


def test_directory_that_cannot_be_written_is_one_line(tmp_path):
    from ccop_mm.engine.hooks.checkpoint_hook import SafeLocalBackend

    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match=re.escape(str(tmp_path / 'file' / 'epoch_1.pth'))):
        SafeLocalBackend().put(b'', tmp_path / 'file' / 'epoch_1.pth')
