import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ccop_mm.models import losses


def unit_rows(rows, channels, generator):
    return F.normalize(torch.randn(rows, channels, generator=generator, dtype=torch.float64), dim=1)


def slow_info_nce(query, keys, queue, temperature):
    rows = []
    for q, k in zip(query.tolist(), keys.tolist(), strict=True):
        positive = sum(a * b for a, b in zip(q, k, strict=True)) / temperature
        negatives = [sum(a * b for a, b in zip(q, n, strict=True)) / temperature for n in queue.T.tolist()]
        rows.append(-positive + math.log(math.exp(positive) + sum(math.exp(n) for n in negatives)))
    return torch.tensor(rows, dtype=torch.float64)


def slow_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def scene(generator, count=14, images=3):
    corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64) * 100
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    boxes[3, 2] = boxes[3, 0]  # no width
    batch_index = torch.randint(images, (count,), generator=generator).sort().values
    batch_index[3] = batch_index[2]
    return boxes, batch_index


def slow_pairs(boxes, batch_index, iou_thr=0.05):
    return [
        (i, j)
        for i, a in enumerate(boxes.tolist())
        for j, b in enumerate(boxes.tolist())
        if i != j
        and batch_index[i] == batch_index[j]
        and slow_iou(a, b) < iou_thr
        and a[2] > a[0]
        and b[2] > b[0]
        and a[3] > a[1]
        and b[3] > b[1]
    ]


@pytest.mark.parametrize('temperature', [0.2, 1.0])
def test_info_nce_equals_plain_loops(temperature, generator):
    query, keys = unit_rows(7, 16, generator), unit_rows(7, 16, generator)
    queue = unit_rows(33, 16, generator).T
    result = losses.info_nce(query, keys, queue, temperature)
    torch.testing.assert_close(result, slow_info_nce(query, keys, queue, temperature), rtol=0, atol=1e-12)


def test_info_nce_gradient_is_the_closed_form(generator):
    # Eq. 5 at T = 1: dL/dq = (p - 1) k + sum over the queue of p_n n, with p the softmax; a factor 1 / T otherwise.
    query, keys = unit_rows(5, 8, generator).requires_grad_(), unit_rows(5, 8, generator)
    queue, temperature = unit_rows(21, 8, generator).T, 0.2
    losses.info_nce(query, keys, queue, temperature).sum().backward()
    for q, k, gradient in zip(query.detach(), keys, query.grad, strict=True):
        weights = torch.cat([(q @ k)[None], q @ queue]).div(temperature).softmax(0)
        expected = ((weights[0] - 1) * k + queue @ weights[1:]) / temperature
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('chunk_size', [1, 3, 7, 100])
def test_info_nce_in_chunks_is_the_same(chunk_size, generator):
    query, keys = unit_rows(7, 16, generator).requires_grad_(), unit_rows(7, 16, generator)
    queue, weights = unit_rows(33, 16, generator).T, torch.arange(7.0)
    plain = losses.info_nce(query, keys, queue)
    chunked = losses.info_nce(query, keys, queue, chunk_size=chunk_size)
    expected = torch.autograd.grad(plain @ weights.double(), query)[0]
    found = torch.autograd.grad(chunked @ weights.double(), query)[0]
    torch.testing.assert_close(chunked, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


class Largest(TorchDispatchMode):
    """Records the largest number of elements of a result."""

    found = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.found = max([self.found, *(leaf.numel() for leaf in tree_leaves(result) if torch.is_tensor(leaf))])
        return result


@pytest.mark.parametrize('chunk_size', [8, None])
def test_chunks_bound_the_number_of_logits_in_memory(chunk_size, generator, monkeypatch):
    monkeypatch.setattr(losses, 'CHUNK_LOGITS', 16 * 500)
    query, keys = unit_rows(64, 8, generator).requires_grad_(), unit_rows(64, 8, generator)
    queue, kept = unit_rows(500, 8, generator).T, []

    def note(tensor):
        kept.append(tensor.numel())
        return tensor

    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        losses.info_nce(query, keys, queue, chunk_size=chunk_size).sum().backward()
    assert largest.found == (chunk_size or 16) * 500
    assert max(kept) == 64 * 8, 'neither logits nor queue are saved for backward'


def test_the_queue_may_change_before_backward(generator):
    query, keys = unit_rows(5, 8, generator).requires_grad_(), unit_rows(5, 8, generator)
    queue = unit_rows(21, 8, generator).T
    (expected,) = torch.autograd.grad(losses.info_nce(query, keys, queue).sum(), query)
    result = losses.info_nce(query, keys, queue).sum()
    queue.zero_()
    torch.testing.assert_close(torch.autograd.grad(result, query)[0], expected, rtol=0, atol=0)


def test_info_nce_of_large_logits_stays_finite(generator):
    # exp overflows float32 above 88; here positive and negative logits reach 1,000.
    query, keys = unit_rows(6, 8, generator).float(), unit_rows(6, 8, generator).float()
    keys[:3] = query[:3]
    queue = torch.cat([query[3:], unit_rows(9, 8, generator).float()]).T
    query.requires_grad_()
    loss = losses.info_nce(query, keys, queue, temperature=1e-3)
    logits = torch.cat([(query * keys).sum(1, keepdim=True), query @ queue], dim=1) / 1e-3
    expected = F.cross_entropy(logits, torch.zeros(6, dtype=torch.long), reduction='none')
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-3)
    found, wanted = (torch.autograd.grad(value.sum(), query)[0] for value in (loss, expected))
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-2)


def test_info_nce_of_no_rows_is_empty_and_connected():
    query = torch.zeros(0, 8, requires_grad=True)
    rows = losses.info_nce(query, torch.zeros(0, 8), torch.randn(8, 5))
    rows.sum().backward()
    assert rows.shape == (0,)
    assert query.grad.shape == (0, 8)


def test_disjoint_pairs_equal_plain_loops(generator):
    boxes, batch_index = scene(generator)
    pairs = losses.disjoint_pairs(boxes, batch_index)
    assert [tuple(pair) for pair in pairs.nonzero().tolist()] == slow_pairs(boxes, batch_index)
    assert not pairs[3].any(), 'a box without area belongs to no pair'


def test_hinge_equals_plain_loops(generator):
    boxes, batch_index = scene(generator)
    embeddings = unit_rows(len(boxes), 4, generator)
    expected = sum(
        max(sum(a * b for a, b in zip(embeddings[i].tolist(), embeddings[j].tolist(), strict=True)) - 0.4, 0)
        for i, j in slow_pairs(boxes, batch_index)
    )
    assert expected != 0, 'the scene must contain pairs above the margin'
    result = losses.intra_image_hinge(embeddings, losses.disjoint_pairs(boxes, batch_index))
    assert result.item() == pytest.approx(expected, abs=1e-12)


def test_triplet_equals_plain_loops(generator):
    boxes, batch_index = scene(generator)
    embeddings, keys = unit_rows(len(boxes), 4, generator), unit_rows(len(boxes), 4, generator)
    expected = sum(
        max((embeddings[i] @ keys[j] - embeddings[j] @ keys[j]).item() + 0.4, 0)
        for i, j in slow_pairs(boxes, batch_index)
    )
    result = losses.intra_image_triplet(embeddings, keys, losses.disjoint_pairs(boxes, batch_index))
    assert result.item() == pytest.approx(expected, abs=1e-12)


def test_gradients_by_finite_differences(generator):
    boxes, batch_index = scene(generator, count=8)
    pairs = losses.disjoint_pairs(boxes, batch_index)
    embeddings, keys = unit_rows(8, 5, generator).requires_grad_(), unit_rows(8, 5, generator)
    queue = unit_rows(9, 5, generator).T
    assert torch.autograd.gradcheck(lambda z: losses.info_nce(z, keys, queue), embeddings)
    assert torch.autograd.gradcheck(lambda z: losses.intra_image_hinge(z, pairs), embeddings)
    assert torch.autograd.gradcheck(lambda z: losses.intra_image_triplet(z, keys, pairs), embeddings)
