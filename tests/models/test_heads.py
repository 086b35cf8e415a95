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
    with pytest.raises(ValueError, match='temperature must be positive'):
        ObjectContrastHead(temperature=temperature)


def test_no_object_and_no_pair_give_zero_with_a_gradient_path():
    query = torch.zeros(0, 8, requires_grad=True)
    loss = ObjectContrastHead()(query, torch.zeros(0, 8), torch.randn(8, 4))
    loss = loss + IntraImageLoss()(query, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert query.grad.shape == (0, 8)

    lonely = F.normalize(torch.randn(1, 8), dim=1).requires_grad_()
    loss = IntraImageLoss()(lonely, torch.tensor([[0.0, 0, 9, 9]]), torch.zeros(1, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert lonely.grad.abs().max() == 0


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


def test_intra_image_loss_says_what_it_lacks():
    with pytest.raises(ValueError, match='mode must be'):
        IntraImageLoss(mode='other')
    with pytest.raises(ValueError, match='needs the key embeddings'):
        IntraImageLoss(mode='triplet')(torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(1))
