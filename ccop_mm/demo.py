"""The four steps end to end on little data, by the very commands a user would type."""

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ccop_mm.datasets.scenes import write_scenes
from ccop_mm.errors import InputError
from ccop_mm.evaluation import DEFAULT_KS
from ccop_mm.fileio import atomic_write
from ccop_mm.proposals import ProposalStore, list_photos
from ccop_mm.proposals.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[1]
PRETRAIN_CONFIG = ROOT / 'configs/ccop/ccop_r18_fpn_demo.py'
TRANSFER_CONFIG = ROOT / 'configs/transfer/mask_rcnn/mask-rcnn_r18-fpn_ccop-demo.py'
#: Photos per step, as in the two configs.
PRETRAIN_BATCH, TRANSFER_BATCH = 16, 4
#: Short side at which objects are compared: about the scale of the pre-training views' objects.
PROBE_SIZE = 160
#: The mark of a folder that the demo made and may clear.
MARK = '.ccop_mm_demo'


@dataclass
class Split:
    """Photos with annotations: a COCO json, its folder of photos, and how many there are."""

    annotations: Path
    images: Path
    photos: int


@dataclass
class Data:
    """What a demo runs on.

    Attributes:
        train (Split): Proposals, pre-training and fine-tuning use it.
        val (Split): kNN recall and AP are measured on it.
        classes (list[str]): Category names, in the order of the json.
        proposals (Path): Where the proposals go.
        note (str): What a reader of the numbers must know.
    """

    train: Split
    val: Split
    classes: list[str]
    proposals: Path
    note: str


def make_scenes(folder: Path, num_train: int, num_val: int) -> Data:
    """Synthetic scenes in the place where the demo configs look for them."""
    files = write_scenes(folder, num_train, num_val)
    train, val = (Split(files[name], folder / 'images', n) for name, n in (('train', num_train), ('val', num_val)))
    note = f'{num_train} synthetic scenes to learn from, {num_val} others to measure on'
    return Data(train, val, _classes(files['train']), folder / 'proposals.npz', note)


def take_photos(source: Path, out: Path, num_train: int, num_val: int) -> Data:
    """At most so many photos of a folder in COCO layout; only the shortened annotations are written, to ``out``.

    Raises:
        InputError: There is no folder, no annotation file in it, or no mask in the annotations.
    """
    if not source.is_dir():
        raise InputError(f'{source} is not a folder; DATA must name one with annotations/*.json and the photos')
    train, val = _find_annotations(source)
    files = {'train': (train, num_train), 'val': (val or train, num_val if val else num_train)}
    splits = {}
    for name, (annotations, limit) in files.items():
        photo = list_photos(annotations)[0]
        images = Path(str(photo.path).removesuffix(photo.file_name))
        splits[name] = _shorten(annotations, images, out / 'data' / f'instances_{name}.json', limit)
    others = f'{splits["val"].photos} others'
    measured = 'the same ones, for want of others, so the numbers flatter' if val is None else others
    note = f'{splits["train"].photos} photos of {source.name} to learn from; measured on {measured}'
    return Data(splits['train'], splits['val'], _classes(splits['train'].annotations), out / 'proposals.npz', note)


def _find_annotations(source: Path) -> tuple[Path, Path | None]:
    """The json to train on and, if there is another, the one to measure on."""
    files = sorted((source / 'annotations').glob('*.json')) or sorted(source.glob('*.json'))
    instances = [file for file in files if 'instances' in file.name] or files
    if not instances:
        raise InputError(f'{source} holds no annotations/*.json; the demo needs a folder in COCO layout')
    train = next((file for file in instances if 'train' in file.name), instances[0])
    return train, next((file for file in instances if 'val' in file.name and file != train), None)


def _shorten(annotations: Path, images: Path, out: Path, limit: int) -> Split:
    """Writes the annotations of at most ``limit`` photos, drawn with a fixed seed."""
    content = json.loads(annotations.read_text(encoding='utf-8'))
    kept = sorted(content['images'], key=lambda image: image['id'])
    if len(kept) > limit:
        kept = sorted(random.Random(0).sample(kept, limit), key=lambda image: image['id'])
    ids = {image['id'] for image in kept}
    objects = [one for one in content.get('annotations', []) if one['image_id'] in ids]
    if not any(one.get('segmentation') for one in objects):
        raise InputError(f'{annotations} has no mask for these photos, and the demo fine-tunes Mask R-CNN')
    with atomic_write(out, 'w') as file:
        json.dump({'images': kept, 'annotations': objects, 'categories': content['categories']}, file)
    return Split(out, images, len(kept))


def _classes(annotations: Path) -> list[str]:
    return [category['name'] for category in json.loads(annotations.read_text(encoding='utf-8'))['categories']]


def write_configs(data: Data, out: Path, pretrain_steps: int, transfer_steps: int) -> tuple[Path, Path]:
    """Configs that name the data, on top of the demo configs: what a user writes for photos of their own."""
    batch = min(PRETRAIN_BATCH, data.train.photos)
    epochs = max(1, round(pretrain_steps / (data.train.photos // batch)))
    pretrain = {
        'train_dataloader': dict(
            batch_size=batch,
            dataset=dict(
                data_root=None,
                ann_file=str(data.train.annotations),
                data_prefix=dict(img_path=f'{data.train.images}/'),
                proposal_file=str(data.proposals),
            ),
        ),
        'param_scheduler': [
            dict(type='CosineAnnealingLR', T_max=epochs, eta_min=0.0, by_epoch=True, convert_to_iter_based=True)
        ],
        'train_cfg': dict(max_epochs=epochs),
        'default_hooks': dict(checkpoint=dict(interval=epochs)),
    }
    pretrain_config = _write_config(out / 'pretrain.py', PRETRAIN_CONFIG, pretrain)

    def dataset(split: Split) -> dict:
        return dict(
            data_root='',
            ann_file=str(split.annotations),
            data_prefix=dict(img=f'{split.images}/'),
            metainfo=dict(classes=tuple(data.classes)),
        )

    epochs_of_transfer = max(1, round(transfer_steps * TRANSFER_BATCH / data.train.photos))
    heads = dict(num_classes=len(data.classes))
    transfer = {
        'model': dict(
            init_cfg=dict(checkpoint=str(out / 'pretrain' / f'epoch_{epochs}.pth')),
            roi_head=dict(bbox_head=heads, mask_head=heads),
        ),
        'train_dataloader': dict(dataset=dataset(data.train)),
        'val_dataloader': None,
        'val_evaluator': None,
        'val_cfg': None,
        'test_dataloader': dict(dataset=dataset(data.val)),
        'test_evaluator': dict(ann_file=str(data.val.annotations)),
        'train_cfg': dict(max_epochs=epochs_of_transfer),
        'default_hooks': dict(checkpoint=dict(interval=epochs_of_transfer)),
    }
    return pretrain_config, _write_config(out / 'transfer.py', TRANSFER_CONFIG, transfer)


def _write_config(path: Path, base: Path, settings: dict) -> Path:
    lines = [f'_base_ = [{str(base)!r}]', *(f'{name} = {value!r}' for name, value in settings.items())]
    with atomic_write(path, 'w') as file:
        file.write('\n'.join(lines) + '\n')
    return path


def run_command(title: str, command: list, log: Path) -> float:
    """Runs a command with its output in a log file and one line of progress; returns the seconds it took.

    Raises:
        InputError: The command failed; the message ends with the last lines of its output.
    """
    command = [str(part) for part in command]
    tool = [str(Path(part).relative_to(ROOT)) if part.startswith(f'{ROOT}/tools') else part for part in command]
    print(f'\n{title}\n  python {shlex.join(tool[1:])}', flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    progress = re.compile(r'Epoch\(\w+\)\s+(?:\[(\d+)\])?\[\s*(\d+)/(\d+)\](?:.*?\bloss: ([\d.]+))?')
    # Threads that spin for long while they wait slow a step down several times on busy cores (docs/performance.md).
    options = dict(cwd=ROOT, env={'OMP_WAIT_POLICY': 'passive', 'GOMP_SPINCOUNT': '2000', **os.environ})
    started, last = time.monotonic(), []
    with (
        open(log, 'w', encoding='utf-8') as file,
        tqdm(bar_format='  {elapsed} {desc}', leave=False, disable=None) as bar,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options) as process,
    ):
        for line in process.stdout:
            file.write(line)
            last = [*last[-19:], line.rstrip()]
            if found := progress.search(line):
                epoch, step, steps, loss = found.groups()
                where = f'epoch {epoch}, ' if epoch else ''
                bar.set_description_str(f'{where}{step} of {steps}' + (f', loss {loss}' if loss else ''))
    if process.returncode:
        raise InputError(f'"{title}" failed; all of its output: {log}; the end of it:\n' + '\n'.join(last))
    return time.monotonic() - started


def read_scalars(work_dir: Path) -> list[dict]:
    """What a training run logged, in order: one dict for each log line."""
    file = max(work_dir.glob('*/vis_data/scalars.json'), key=lambda path: path.stat().st_mtime)
    return [json.loads(line) for line in file.read_text(encoding='utf-8').splitlines()]


def pick(rows: list, count: int) -> list:
    """At most ``count`` of the rows, evenly spread, the first and the last among them."""
    if len(rows) <= count:
        return rows
    return [rows[round(index * (len(rows) - 1) / (count - 1))] for index in range(count)]


def prepare_folder(out: Path) -> None:
    """An empty folder for the results; clears what an earlier demo left.

    Raises:
        InputError: The folder holds something that is not the demo's.
    """
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).exists():
            raise InputError(f'{out} is not empty and was not made by the demo; name another with --out')
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def run_demo(
    out: Path,
    source: Path | None = None,
    pretrain_steps: int = 180,
    transfer_steps: int = 240,
    num_train: int = 96,
    num_val: int = 48,
    scenes: Path = ROOT / 'data' / 'demo',
) -> str:
    """Runs all steps and returns the closing table.

    Args:
        out (Path): Folder for everything that is written, but for the scenes.
        source (Path, optional): A folder in COCO layout; synthetic scenes without it.
        pretrain_steps (int): About so many steps of pre-training.
        transfer_steps (int): About so many steps of fine-tuning.
        num_train (int): At most so many photos to learn from.
        num_val (int): At most so many to measure on.
        scenes (Path): Where the synthetic scenes go.
    """
    started = time.monotonic()
    out = out.absolute()
    prepare_folder(out)
    data = take_photos(source.resolve(), out, num_train, num_val) if source else make_scenes(scenes, num_train, num_val)
    print(f'photos: {data.note}')
    pretrain, transfer = write_configs(data, out, pretrain_steps, transfer_steps)
    tools, logs = ROOT / 'tools', out / 'logs'
    images = data.train.images

    propose = [
        tools / 'propose.py',
        data.train.annotations,
        '--image-root',
        images,
        '--out',
        data.proposals,
        '--skip-bad',
    ]
    seconds = {'propose': run_command('1. propose: selective search', [sys.executable, *propose], logs / 'propose.log')}
    seconds['pre-train'] = run_command(
        '2. pre-train: CCOP',
        [sys.executable, tools / 'train.py', pretrain, '--work-dir', out / 'pretrain'],
        logs / 'pretrain.log',
    )
    checkpoint = (out / 'pretrain' / 'last_checkpoint').read_text(encoding='utf-8').strip()
    seconds['transfer'] = run_command(
        '3. transfer: Mask R-CNN from the checkpoint',
        [sys.executable, tools / 'train.py', transfer, '--work-dir', out / 'transfer'],
        logs / 'transfer.log',
    )
    detector = (out / 'transfer' / 'last_checkpoint').read_text(encoding='utf-8').strip()
    test = [tools / 'test.py', transfer, detector, '--work-dir', out / 'transfer', '--out', out / 'ap.json']
    seconds['test'] = run_command('   its average precision', [sys.executable, *test], logs / 'test.log')
    seconds['inspect'] = 0.0
    for name, weights in (('random', []), ('pre-trained', [checkpoint])):
        report = ['--annotations', data.val.annotations, '--images', data.val.images, '--size', PROBE_SIZE]
        command = [tools / 'inspect/knn_recall.py', pretrain, *weights, *report, '--json', out / f'knn-{name}.json']
        title = f'4. inspect: object kNN recall, {name} weights'
        seconds['inspect'] += run_command(title, [sys.executable, *command], logs / f'knn-{name}.log')
    figure = out / 'curriculum.png'
    draw = [tools / 'inspect/curriculum.py', data.proposals, '--images', images, '--out', figure, '--config', pretrain]
    seconds['inspect'] += run_command('   a figure of the curriculum', [sys.executable, *draw], logs / 'curriculum.log')

    total = time.monotonic() - started
    table = summarize(data, out, seconds, total, figure)
    with atomic_write(out / 'summary.txt', 'w') as file:
        file.write(table)
    return table


def summarize(data: Data, out: Path, seconds: dict[str, float], total: float, figure: Path) -> str:
    """The closing table, from the files that the steps wrote."""
    proposals = evaluate(ProposalStore.load(data.proposals), data.train.annotations)
    pretrain, transfer = read_scalars(out / 'pretrain'), read_scalars(out / 'transfer')
    knn = {name: json.loads((out / f'knn-{name}.json').read_text()) for name in ('random', 'pre-trained')}
    ap = json.loads((out / 'ap.json').read_text())
    by_epoch = list({row['epoch']: row for row in pretrain}.values())  # the last line of each epoch

    def step_time(rows):
        return sorted(row['time'] for row in rows)[len(rows) // 2]

    lines = [
        f'photos        {data.note}',
        f'proposals     {proposals["boxes_per_photo"]:.1f} boxes a photo, '
        f'recall of the objects at IoU 0.5 {proposals["recall_50"]:.3f}',
        '',
        'pre-training  epoch      loss  = image + object + intra   hardest similarity',
        *(
            f'              {row["epoch"]:5d}  {row["loss"]:8.3f}  {row["loss_img"]:7.3f} {row["loss_obj"]:8.3f} '
            f'{row["loss_intra"]:7.3f}   {row["hardest_similarity"]:18.3f}'
            for row in pick(by_epoch, 10)
        ),
        '              (the task grows harder along the way, and the queues fill: the loss need not fall)',
        '',
        *_knn_lines(knn),
        '',
        f'transfer      box AP {ap["coco/bbox_mAP"]:.3f} (AP50 {ap["coco/bbox_mAP_50"]:.3f}), '
        f'mask AP {ap["coco/segm_mAP"]:.3f} (AP50 {ap["coco/segm_mAP_50"]:.3f})',
        '',
        f'a step        pre-training {step_time(pretrain):.2f} s, fine-tuning {step_time(transfer):.2f} s',
        f'seconds       {", ".join(f"{name} {value:.0f}" for name, value in seconds.items())}, in all {total:.0f}',
        f'figures       {figure}',
        f'all results   {out}',
    ]
    return '\n'.join(lines) + '\n'


def _knn_lines(knn: dict[str, dict[str, float]]) -> list[str]:
    """Rows of Table 9: random against pre-trained weights, for both kinds of features."""
    ks = [k for k in DEFAULT_KS if f'backbone@{k}' in knn['random']]
    objects = f'{knn["random"]["num_objects"]} objects of {knn["random"]["num_classes"]} classes'
    lines = [f'kNN recall, %  {"k":>25}' + ''.join(f'{k:>7}' for k in ks)]
    for feature in ('backbone', 'embedding'):
        for name, report in knn.items():
            title = f'{feature}, {name}'
            lines.append(f'              {title:>26}' + ''.join(f'{100 * report[f"{feature}@{k}"]:7.1f}' for k in ks))
    lines.append(f'              {"chance":>26}{100 * knn["random"]["chance"]:7.1f}   ({objects})')
    return lines
