import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ccop_mm.models import key_plan
from ccop_mm.models.key_plan import gather_rows, group_sizes, plan_keys

SCRIPT = Path(__file__).with_name('two_ranks.py')


@pytest.mark.parametrize(
    'batch_size, bn_group, sizes',
    [(64, 32, [32, 32]), (32, 32, [16, 16]), (100, 32, [34, 33, 33]), (5, 2, [3, 2]), (1, 32, [1]), (2, 1, [1, 1])],
)
def test_group_sizes(batch_size, bn_group, sizes):
    assert group_sizes(batch_size, bn_group) == sizes


@pytest.mark.parametrize('mode', ['auto', 'split', 'none', 'shuffle'])
def test_boxes_move_with_their_images(mode, generator):
    counts = torch.tensor([2, 0, 3, 1, 4])
    batch_index = torch.repeat_interleave(torch.arange(5), counts)
    boxes = torch.rand(len(batch_index), 3, 4, generator=generator)
    images = torch.arange(5.0)[:, None]
    plan = plan_keys(boxes, batch_index, 5, mode, step=4)
    taken = plan.take_images(images)
    # The only pixel of an image is its number, so an object must be assigned to the image with its own number.
    assert taken[plan.batch_index].flatten().tolist() == batch_index.tolist()
    assert torch.equal(plan.boxes, boxes)
    assert torch.equal(plan.restore_images(taken), images)
    assert torch.equal(plan.restore_objects(boxes), boxes)
    assert (plan.sizes == [5]) == (mode in ('none', 'shuffle'))


def test_plans_differ_between_steps():
    boxes, batch_index = torch.zeros(0, 3, 4), torch.zeros(0, dtype=torch.long)
    orders = {tuple(plan_keys(boxes, batch_index, 16, 'split', step).images.tolist()) for step in range(20)}
    assert len(orders) == 20


@pytest.mark.parametrize('half, limit', [(False, 25e6), (True, 12.5e6)])
def test_number_of_bytes_sent_per_rank(half, limit, monkeypatch, generator):
    # The authors' code sends 156 MB per step at this size, 136 MB of it to un-shuffle feature maps.
    sent = []

    def all_gather(tensor, group=None):
        sent.append(tensor.numel() * tensor.element_size())
        return torch.stack([tensor, tensor])

    monkeypatch.setattr(key_plan, 'get_world_size', lambda: 2)
    monkeypatch.setattr(key_plan, '_cpu_group', lambda: None)
    monkeypatch.setattr(key_plan, '_all_gather', all_gather)
    images, objects, candidates = 32, 12, 10
    batch_index = torch.arange(images).repeat_interleave(objects)
    boxes = torch.rand(images * objects, candidates, 4, generator=generator)
    plan = plan_keys(boxes, batch_index, images, 'auto', step=0)
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=half):
        plan.take_images(torch.zeros(images, 3, 224, 224))
        plan.restore_images(torch.zeros(images, 128))
        plan.restore_objects(torch.zeros(len(plan.boxes), candidates, 128))
    key_plan.gather_rows(torch.zeros(images, 128), [images] * 2)  # keys that enter the queues
    key_plan.gather_rows(torch.zeros(images * objects, 128), plan.object_counts)
    views = 3 * 224 * 224 * images * (2 if half else 4)
    assert views < sum(sent) < limit
    print(f'{sum(sent) / 1e6:.2f} MB')


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """Function from a case to the results of two processes and of one: ([rank 0, rank 1], single)."""
    out = tmp_path_factory.mktemp('ranks')
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    for command in ([sys.executable, *launch, SCRIPT, out], [sys.executable, SCRIPT, out]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]

    def load(case, rank, world):
        return torch.load(out / f'{case}-{rank}-of-{world}.pt', weights_only=True)

    return lambda case: ([load(case, rank, 2) for rank in range(2)], load(case, 0, 1))


@pytest.mark.slow
@pytest.mark.parametrize('case', ['frozen', 'shuffled', 'one_rank_bare', 'all_bare'])
def test_two_ranks_equal_one_process_on_the_same_batch(ranks, case):
    # 'frozen': no batch statistics. Others: the groups of the single process correspond to the two ranks.
    (first, second), alone = ranks(case)
    for name, gradient in alone['gradients'].items():
        torch.testing.assert_close(first['gradients'][name], gradient, rtol=1e-5, atol=1e-7, msg=name)
        assert torch.equal(first['gradients'][name], second['gradients'][name]), name
    for name in ('loss_img', 'loss_obj', 'loss_intra'):
        mean = (first['losses1'][name] + second['losses1'][name]) / 2
        torch.testing.assert_close(mean, alone['losses1'][name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('case', ['frozen', 'shuffled', 'one_rank_bare', 'all_bare'])
@pytest.mark.parametrize('queue', ['image_queue', 'object_queue'])
def test_queues_are_identical_on_every_rank_and_equal_to_one_process(ranks, case, queue):
    (first, second), alone = ranks(case)
    assert torch.equal(first[queue], second[queue])
    torch.testing.assert_close(first[queue], alone[queue], rtol=0, atol=1e-9)


def test_nothing_is_gathered_if_no_rank_has_rows(monkeypatch):
    monkeypatch.setattr(key_plan, '_all_gather', lambda *_: pytest.fail('a collective without elements'))
    rows = torch.zeros(0, 10, 4)
    assert gather_rows(rows, [0, 0, 0]) is rows
