import pytest
import torch
import torch.nn.functional as F
from mmselfsup.models.heads import ContrastiveHead

from ccop_mm.models import ImageContrastHead, IntraImageLoss, ObjectContrastHead, ProjectionMLP, losses


def unit_rows(*shape, generator):
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def test_projection_is_two_layers_and_a_unit_vector(generator):
    projection = ProjectionMLP(in_channels=12, hid_channels=7, out_channels=5).double()
    features = torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64)
    result = projection(features)
    for row, embedding in zip(features.flatten(1), result, strict=True):
        hidden = (projection.fc1.weight @ row + projection.fc1.bias).clamp(min=0)
        output = projection.fc2.weight @ hidden + projection.fc2.bias
        torch.testing.assert_close(embedding, output / output.square().sum().sqrt(), rtol=0, atol=1e-12)


def test_image_loss_equals_mmselfsup(generator):
    query, keys = unit_rows(6, 8, generator=generator), unit_rows(6, 8, generator=generator)
    queue = unit_rows(40, 8, generator=generator).T
    peer = ContrastiveHead(loss=dict(type='mmcls.CrossEntropyLoss'), temperature=0.2)
    expected = peer((query * keys).sum(1, keepdim=True), query @ queue)
    assert ImageContrastHead()(query, keys, queue).item() == pytest.approx(expected.item(), abs=1e-12)


def test_select_takes_the_least_similar_valid_candidate(generator):
    query, candidates = unit_rows(20, 8, generator=generator), unit_rows(20, 6, 8, generator=generator)
    valid = torch.rand(20, 6, generator=generator) < 0.4
    valid[0], valid[1] = False, torch.tensor([False] * 5 + [True])
    selected = ObjectContrastHead().select(query, candidates, valid)
    for row in range(1, 20):
        if valid[row].any():
            similarities = {j: (query[row] @ candidates[row, j]).item() for j in range(6) if valid[row, j]}
            assert selected[row].item() == min(similarities, key=similarities.get)
    assert selected[1] == 5
    assert 0 <= selected[0] < 6, 'an object without a valid candidate must not index out of range'


@pytest.mark.parametrize('temperature', [0, -1])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match=f'temperature.*{temperature}'):
        ObjectContrastHead(temperature=temperature)


def test_no_object_and_no_pair_give_zero_with_a_gradient_path():
    query = torch.zeros(0, 8, requires_grad=True)
    loss = ObjectContrastHead()(query, torch.zeros(0, 8), torch.randn(8, 4))
    loss = loss + IntraImageLoss()(query, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert query.grad.shape == (0, 8)

    single = F.normalize(torch.randn(1, 8), dim=1).requires_grad_()
    loss = IntraImageLoss()(single, torch.tensor([[0.0, 0, 9, 9]]), torch.zeros(1, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert single.grad.abs().max() == 0


@pytest.mark.parametrize('mode', ['hinge', 'triplet'])
def test_intra_image_loss_is_the_sum_over_the_number_of_pairs(mode, generator):
    embeddings, keys = unit_rows(6, 4, generator=generator), unit_rows(6, 4, generator=generator)
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 30, 30], [21, 21, 31, 31]] * 2)
    batch_index = torch.tensor([0, 0, 0, 1, 1, 1])
    pairs = losses.disjoint_pairs(boxes, batch_index)
    assert pairs.sum() == 8  # box 0 with 1 and with 2, both ways, in both images
    total = {
        'hinge': lambda: losses.intra_image_hinge(embeddings, pairs),
        'triplet': lambda: losses.intra_image_triplet(embeddings, keys, pairs),
    }[mode]()
    loss = IntraImageLoss(mode=mode)(embeddings, boxes, batch_index, keys)
    assert loss.item() == pytest.approx(total.item() / 8, abs=1e-12)


def test_intra_image_loss_rejects_an_unknown_mode_and_missing_keys():
    with pytest.raises(ValueError, match='other'):
        IntraImageLoss(mode='other')
    with pytest.raises(ValueError, match='keys'):
        IntraImageLoss(mode='triplet')(torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(1))


def loss_of(kind, generator, rows=6, **settings):
    """A loss of random embeddings that need a gradient."""
    query = unit_rows(rows, 8, generator=generator).requires_grad_()
    keys = unit_rows(rows, 8, generator=generator)
    if kind is IntraImageLoss:
        boxes = torch.tensor([[20.0 * row, 0, 20.0 * row + 10, 10] for row in range(rows)])
        return query, kind(alpha=-1.0, **settings)(query, boxes, torch.zeros(rows, dtype=torch.long))
    return query, kind(**settings)(query, keys, unit_rows(9, 8, generator=generator).T)


@pytest.mark.parametrize('kind', [ImageContrastHead, ObjectContrastHead, IntraImageLoss])
def test_loss_weight_scales_loss_and_gradient(kind):
    found = {}
    for weight in (1.0, 2.5):
        query, loss = loss_of(kind, torch.Generator().manual_seed(0), loss_weight=weight)
        loss.backward()
        found[weight] = loss.item(), query.grad
    assert found[1.0][0] > 0
    assert found[2.5][0] == pytest.approx(2.5 * found[1.0][0], rel=1e-12)
    torch.testing.assert_close(found[2.5][1], 2.5 * found[1.0][1], rtol=1e-12, atol=0)


@pytest.mark.parametrize('kind', [ImageContrastHead, ObjectContrastHead, IntraImageLoss])
@pytest.mark.parametrize('rows', [6, 0])
def test_loss_weight_zero_skips_the_work_and_keeps_the_graph(kind, rows, generator, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError('computed a loss of weight 0')

    monkeypatch.setattr(losses, 'info_nce', fail)
    monkeypatch.setattr(losses, 'disjoint_pairs', fail)
    query, loss = loss_of(kind, generator, rows, loss_weight=0)
    loss.backward()
    assert loss.item() == 0
    assert query.grad.shape == query.shape and not query.grad.any()


@pytest.mark.parametrize('kind', [ImageContrastHead, ObjectContrastHead, IntraImageLoss])
def test_negative_loss_weight_is_rejected(kind):
    with pytest.raises(ValueError, match='loss_weight.*-0.5'):
        kind(loss_weight=-0.5)
