"""The demo's steps: writes the configs, calls the tools as a user would, and summarizes their results."""

import json
import shutil
import sys
import time
from pathlib import Path

from demo_data import DemoData, Split, make_scenes, take_images

from ccop_mm.evaluation import DEFAULT_KS
from ccop_mm.proposals import ProposalStore
from ccop_mm.proposals.evaluate import evaluate
from ccop_mm.utils.commands import run_command
from ccop_mm.utils.config_file import write_config
from ccop_mm.utils.errors import InputError
from ccop_mm.utils.file_io import atomic_write
from ccop_mm.utils.train_log import read_scalars

ROOT = Path(__file__).resolve().parents[1]
PRETRAIN_CONFIG = ROOT / 'configs/ccop/ccop_r18_fpn_demo.py'
TRANSFER_CONFIG = ROOT / 'configs/transfer/mask_rcnn/mask-rcnn_r18-fpn_ccop-demo.py'
#: Batch sizes of the two configs.
PRETRAIN_BATCH, TRANSFER_BATCH = 16, 4
#: Short side, in pixels, of the images for kNN recall. It gives objects about the size that they have in the
#: pre-training views.
PROBE_SIZE = 160
#: Marker file of a folder that the demo created and may clear.
MARKER = '.ccop_mm_demo'


def write_configs(data: DemoData, out: Path, pretrain_steps: int, transfer_steps: int) -> tuple[Path, Path]:
    """Writes a pre-training and a transfer config that inherit from the demo configs.

    Args:
        data (DemoData): Images, annotations and proposals to train on.
        out (Path): Folder for the configs and the work directories.
        pretrain_steps (int): Approximate number of pre-training iterations, rounded to whole epochs.
        transfer_steps (int): Approximate number of fine-tuning iterations, rounded to whole epochs.

    Returns:
        tuple[Path, Path]: The pre-training and the transfer config.
    """
    batch = min(PRETRAIN_BATCH, data.train.num_images)
    epochs = max(1, round(pretrain_steps / (data.train.num_images // batch)))
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
    pretrain_config = write_config(out / 'pretrain.py', PRETRAIN_CONFIG, pretrain)

    transfer_epochs = max(1, round(transfer_steps * TRANSFER_BATCH / data.train.num_images))
    heads = dict(num_classes=len(data.classes))
    transfer = {
        'model': dict(
            init_cfg=dict(checkpoint=str(out / 'pretrain' / f'epoch_{epochs}.pth')),
            roi_head=dict(bbox_head=heads, mask_head=heads),
        ),
        'train_dataloader': dict(dataset=_detection_dataset(data.train, data.classes)),
        'val_dataloader': None,
        'val_evaluator': None,
        'val_cfg': None,
        'test_dataloader': dict(dataset=_detection_dataset(data.val, data.classes)),
        'test_evaluator': dict(ann_file=str(data.val.annotations)),
        'train_cfg': dict(max_epochs=transfer_epochs),
        'default_hooks': dict(checkpoint=dict(interval=transfer_epochs)),
    }
    return pretrain_config, write_config(out / 'transfer.py', TRANSFER_CONFIG, transfer)


def _detection_dataset(split: Split, classes: list[str]) -> dict:
    """Settings of an mmdet ``CocoDataset`` for a split."""
    return dict(
        data_root='',
        ann_file=str(split.annotations),
        data_prefix=dict(img=f'{split.images}/'),
        metainfo=dict(classes=tuple(classes)),
    )


def prepare_folder(out: Path) -> None:
    """Creates an empty output folder; clears the results of an earlier demo run.

    Raises:
        InputError: The folder contains files but was not created by the demo.
    """
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise InputError(f'{out} is not empty and was not created by the demo; choose another folder with --out')
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def run_demo(
    out: Path,
    source: Path | None = None,
    pretrain_steps: int = 180,
    transfer_steps: int = 240,
    num_train: int = 96,
    num_val: int = 48,
    scenes: Path = ROOT / 'data' / 'demo',
) -> str:
    """Runs all steps and returns the summary table.

    Args:
        out (Path): Output folder. The synthetic scenes are written to ``scenes`` instead.
        source (Path, optional): Folder in COCO layout. Default: synthetic scenes.
        pretrain_steps (int): Approximate number of pre-training iterations.
        transfer_steps (int): Approximate number of fine-tuning iterations.
        num_train (int): Maximum number of training images.
        num_val (int): Maximum number of validation images.
        scenes (Path): Folder for the synthetic scenes and their proposals.

    Raises:
        InputError: The data or the output folder cannot be used, or a tool failed.
    """
    started = time.monotonic()
    out = out.absolute()
    prepare_folder(out)
    data = take_images(source.resolve(), out, num_train, num_val) if source else make_scenes(scenes, num_train, num_val)
    print(f'images: {data.description}')
    pretrain, transfer = write_configs(data, out, pretrain_steps, transfer_steps)
    figure = out / 'curriculum.png'

    def call_tool(title: str, log: str, tool: str, *arguments: object) -> float:
        command = [sys.executable, ROOT / 'tools' / tool, *arguments]
        return run_command(title, command, out / 'logs' / f'{log}.log', ROOT)

    seconds = {}
    seconds['propose'] = call_tool(
        '1. propose: selective search',
        'propose',
        'propose.py',
        data.train.annotations,
        *('--image-root', data.train.images),
        *('--out', data.proposals),
        '--skip-bad',
        '--overwrite',  # another number of scenes
    )
    seconds['pre-train'] = call_tool(
        '2. pre-train: CCOP', 'pretrain', 'train.py', pretrain, '--work-dir', out / 'pretrain'
    )
    checkpoint = _last_checkpoint(out / 'pretrain')
    seconds['transfer'] = call_tool(
        '3. transfer: Mask R-CNN from the checkpoint', 'transfer', 'train.py', transfer, '--work-dir', out / 'transfer'
    )
    seconds['test'] = call_tool(
        '   test: average precision',
        'test',
        'test.py',
        transfer,
        _last_checkpoint(out / 'transfer'),
        *('--work-dir', out / 'transfer'),
        *('--out', out / 'ap.json'),
    )
    seconds['inspect'] = 0.0
    for name, weights in (('random', []), ('pre-trained', [checkpoint])):
        seconds['inspect'] += call_tool(
            f'4. inspect: object kNN recall, {name} weights',
            f'knn-{name}',
            'analysis_tools/knn_recall.py',
            pretrain,
            *weights,
            *('--annotations', data.val.annotations),
            *('--images', data.val.images),
            *('--size', PROBE_SIZE),
            *('--json', out / f'knn-{name}.json'),
        )
    seconds['inspect'] += call_tool(
        '   inspect: figure of the curriculum',
        'curriculum',
        'analysis_tools/curriculum.py',
        data.proposals,
        *('--images', data.train.images),
        *('--out', figure),
        *('--config', pretrain),
    )

    summary = summarize(data, out, seconds, time.monotonic() - started, figure)
    with atomic_write(out / 'summary.txt', 'w') as file:
        file.write(summary)
    return summary


def _last_checkpoint(work_dir: Path) -> str:
    return (work_dir / 'last_checkpoint').read_text(encoding='utf-8').strip()


def summarize(data: DemoData, out: Path, seconds: dict[str, float], total: float, figure: Path) -> str:
    """Formats the summary table from the files that the steps wrote.

    Args:
        data (DemoData): The data of the run.
        out (Path): Output folder of the run.
        seconds (dict[str, float]): Duration of each step by name.
        total (float): Duration of the run in seconds.
        figure (Path): The curriculum figure.
    """
    proposals = evaluate(ProposalStore.load(data.proposals), data.train.annotations)
    pretrain, transfer = read_scalars(out / 'pretrain'), read_scalars(out / 'transfer')
    knn = {name: json.loads((out / f'knn-{name}.json').read_text()) for name in ('random', 'pre-trained')}
    ap = json.loads((out / 'ap.json').read_text())
    last_rows = list({row['epoch']: row for row in pretrain}.values())  # the last log line of each epoch
    lines = [
        f'images        {data.description}',
        f'proposals     {proposals["boxes_per_image"]:.1f} boxes per image, '
        f'recall at IoU 0.5 {proposals["recall_50"]:.3f}',
        '',
        'pre-training  epoch      loss  = image + object + intra   hardest similarity',
        *(
            f'              {row["epoch"]:5d}  {row["loss"]:8.3f}  {row["loss_img"]:7.3f} {row["loss_obj"]:8.3f} '
            f'{row["loss_intra"]:7.3f}   {row["hardest_similarity"]:18.3f}'
            for row in pick_evenly(last_rows, 10)
        ),
        '              (the curriculum gets harder and the queues fill up, so the loss need not decrease)',
        '',
        *_knn_lines(knn),
        '',
        f'transfer      box AP {ap["coco/bbox_mAP"]:.3f} (AP50 {ap["coco/bbox_mAP_50"]:.3f}), '
        f'mask AP {ap["coco/segm_mAP"]:.3f} (AP50 {ap["coco/segm_mAP_50"]:.3f})',
        '',
        f'iteration     pre-training {_median_time(pretrain):.2f} s, fine-tuning {_median_time(transfer):.2f} s',
        f'seconds       {", ".join(f"{name} {value:.0f}" for name, value in seconds.items())}, total {total:.0f}',
        f'figure        {figure}',
        f'all results   {out}',
    ]
    return '\n'.join(lines) + '\n'


def pick_evenly(rows: list, count: int) -> list:
    """Returns at most ``count`` evenly spaced rows, including the first and the last."""
    if len(rows) <= count:
        return rows
    return [rows[round(index * (len(rows) - 1) / (count - 1))] for index in range(count)]


def _median_time(rows: list[dict]) -> float:
    return sorted(row['time'] for row in rows)[len(rows) // 2]


def _knn_lines(knn: dict[str, dict[str, float]]) -> list[str]:
    """Formats object kNN recall (Table 9) of random and pre-trained weights for both kinds of features."""
    ks = [k for k in DEFAULT_KS if f'backbone@{k}' in knn['random']]
    objects = f'{knn["random"]["num_objects"]} objects of {knn["random"]["num_classes"]} classes'
    lines = [f'kNN recall, %  {"k":>25}' + ''.join(f'{k:>7}' for k in ks)]
    for feature in ('backbone', 'embedding'):
        for name, report in knn.items():
            title = f'{feature}, {name}'
            lines.append(f'              {title:>26}' + ''.join(f'{100 * report[f"{feature}@{k}"]:7.1f}' for k in ks))
    lines.append(f'              {"chance":>26}{100 * knn["random"]["chance"]:7.1f}   ({objects})')
    return lines
