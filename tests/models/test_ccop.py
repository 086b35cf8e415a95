import copy
import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from mmselfsup.models import MoCo
from mmselfsup.registry import MODELS
from mmselfsup.structures import SelfSupDataSample

from ccop_mm.engine import CompileHook
from ccop_mm.models import losses
from ccop_mm.models.split_batch_norm import deinterleave

GOLDEN = json.loads((Path(__file__).parents[1] / 'data' / 'golden_r18_128.json').read_text())
REFERENCE = Path(__file__).parents[2] / 'configs' / 'ccop' / 'ccop-reference_r50_fpn_800e_coco.py'


def config(**changes):
    """CCOP with a ResNet-18 small enough for a test."""
    return {
        'type': 'mmselfsup.CCOP',
        'backbone': dict(
            type='mmdet.ResNet', depth=18, base_channels=8, norm_eval=False, frozen_stages=-1, norm_cfg=dict(type='BN')
        ),
        'neck': dict(
            type='mmdet.FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4, norm_cfg=dict(type='BN')
        ),
        'image_projector': dict(type='mmselfsup.ProjectionMLP', in_channels=64, hid_channels=32),
        'object_projector': dict(type='mmselfsup.ProjectionMLP', in_channels=16 * 49, hid_channels=32),
        'queue_len': 64,
        **changes,
    }


def sample(boxes_q, boxes_k):
    data_sample = SelfSupDataSample()
    data_sample.pseudo_label = InstanceData(boxes_q=boxes_q, boxes_k=boxes_k)
    return data_sample


def random_batch(counts, generator, size=96, dtype=torch.float32):
    """Two random views and, for image i, ``counts[i]`` objects."""

    def boxes(count):
        top_left = torch.rand(count, 2, generator=generator) * (size - 40)
        return torch.cat([top_left, top_left + torch.rand(count, 2, generator=generator) * 28 + 12], dim=1)

    views = [torch.randn(len(counts), 3, size, size, generator=generator, dtype=dtype) for _ in range(2)]
    return views, [sample(boxes(count), boxes(count)) for count in counts]


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


class TestReleasedCode:
    """The authors' released code, run once on weights and views that the golden file's rules make again.

    Ours is the ``reference`` preset as its config file has it.
    """

    @staticmethod
    def draw(name, shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))

    def parameter(self, name, shape):
        x = self.draw(name, shape)
        if len(shape) > 1:
            fan_in = torch.Size(shape[1:]).numel()
            return x * (2 / fan_in) ** 0.5
        is_norm = '.bn' in name or '.downsample.1.' in name
        return 1 + 0.1 * x if is_norm and name.endswith('weight') else 0.1 * x

    @pytest.fixture(scope='class')
    def step(self):
        # The rule takes a float32 mean, and how it is rounded depends on the number of threads.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield self.run_step()
        torch.set_num_threads(threads)

    def run_step(self):
        settings = GOLDEN['config']
        torch.manual_seed(0)
        cfg = Config.fromfile(REFERENCE)
        # The golden run's size, and no dropout.
        cfg.merge_from_dict(
            {
                'model.backbone.depth': 18,
                'model.neck.in_channels': [64, 128, 256, 512],
                'model.image_projector': dict(in_channels=512, dropout=0.0),
                'model.object_projector.dropout': 0.0,
                'model.queue_len': settings['queue_len'],
                'model.key_batch': 'none',
            }
        )
        with DefaultScope.overwrite_default_scope('mmselfsup'):
            model = MODELS.build(cfg.model)
        for name, parameter in model.named_parameters():
            if not name.startswith('encoder_k.'):
                theirs = name.replace('image_projector', 'image_neck').replace('object_projector', 'object_neck')
                query = self.parameter(theirs, parameter.shape)
                parameter.data.copy_(query)
                noise = self.draw(f'key.{theirs}', parameter.shape)
                key = model.encoder_k.get_parameter(name)
                key.data.copy_(query + 0.01 * noise * query.abs().mean())
        for name, queue in [('image_queue', model.image_queue), ('object_queue', model.object_queue)]:
            queue.keys.copy_(F.normalize(self.draw(name, (128, settings['queue_len'])), dim=0))
        model.encoder_k.steps = 1  # the key weights are given, not to be copied
        model = model.double().train()

        size, batch = settings['view'], settings['batch']
        view_q = self.draw('view_q', (batch, 3, size, size))
        view_k = settings['view_k_from_q'] * view_q + settings['view_k_noise'] * self.draw('view_k', view_q.shape)
        samples = [
            sample(torch.tensor(q).double(), torch.tensor(k).double())
            for q, k in zip(GOLDEN['boxes_q'], GOLDEN['boxes_k'], strict=True)
        ]
        candidates = torch.cat([torch.tensor(rows).double() for rows in GOLDEN['candidates']])
        valid = torch.cat([torch.tensor(rows).bool() for rows in GOLDEN['valid']])
        model.box_jitter.jitter = lambda boxes, img_shape, generator: (candidates, valid)

        seen = {}
        select = model.object_head.select
        image_forward, intra_forward = model.image_head.forward, model.intra_loss.forward

        def spy_select(query, keys, valid):
            seen['selected'] = select(query, keys, valid)
            seen['similarity'] = torch.einsum('nd,njd->nj', query, keys)
            return seen['selected']

        def spy_image(query, keys, queue):
            seen.update(z_q=query.detach(), z_k=keys.detach())
            return image_forward(query, keys, queue)

        def spy_intra(embeddings, boxes, batch_index, keys=None):
            seen.update(object_q=embeddings.detach(), batch_index=batch_index)
            return intra_forward(embeddings, boxes, batch_index, keys)

        model.object_head.select = spy_select
        model.image_head.forward = spy_image
        model.intra_loss.forward = spy_intra
        result = model.loss([view_q.double(), view_k.double()], samples)
        (result['loss_img'] + result['loss_obj']).backward(retain_graph=True)
        seen['grad_norm_img_plus_roi'] = {name: grad.norm().item() for name, grad in gradients(model).items()}
        result['loss_intra'].backward()
        seen['grad_norm_total'] = {name: grad.norm().item() for name, grad in gradients(model).items()}
        seen['losses'] = {name: value.item() for name, value in result.items()}
        seen['boxes_q'] = torch.cat([one.pseudo_label.boxes_q for one in samples])
        return model, seen

    expected = GOLDEN['expected_float64']

    def test_losses(self, step):
        found = step[1]['losses']
        assert found['loss_img'] == pytest.approx(self.expected['img_loss'], abs=1e-8)
        assert found['loss_obj'] == pytest.approx(self.expected['roi_loss'], abs=1e-8)
        assert found['loss_intra'] == pytest.approx(self.expected['intra_loss'], abs=1e-8)

    @pytest.mark.parametrize('name', ['z_q', 'z_k', 'object_q'])
    def test_embeddings(self, step, name):
        expected = torch.tensor(self.expected[name], dtype=torch.float64)
        torch.testing.assert_close(step[1][name][:, : expected.shape[1]], expected, rtol=0, atol=1e-9)

    def test_selected_candidates(self, step):
        assert step[1]['selected'].tolist() == GOLDEN['expected']['selected']
        rows = torch.arange(len(step[1]['selected']))
        expected = torch.tensor(self.expected['selected_similarity'], dtype=torch.float64)
        torch.testing.assert_close(step[1]['similarity'][rows, step[1]['selected']], expected, rtol=0, atol=1e-9)

    @pytest.mark.parametrize('kind', ['grad_norm_img_plus_roi', 'grad_norm_total'])
    def test_gradient_norms(self, step, kind):
        for name, norm in self.expected[kind].items():
            ours = name.replace('image_neck', 'image_projector').replace('object_neck', 'object_projector')
            assert step[1][kind][ours] == pytest.approx(norm, rel=1e-6, abs=1e-12), name

    def test_momentum_update(self, step):
        for name, values in GOLDEN['expected']['key_after_update'].items():
            ours = name.replace('image_neck', 'image_projector').replace('object_neck', 'object_projector')
            key = step[0].encoder_k.get_parameter(ours)
            query = step[0].get_parameter(ours)
            assert key.norm().item() == pytest.approx(values['norm'], rel=1e-6)
            assert (key - query).norm().item() == pytest.approx(values['norm_minus_query'], rel=1e-4)
            assert key.flatten()[:4].tolist() == pytest.approx(values['first'], abs=1e-6)

    @pytest.mark.parametrize('name', ['image_queue', 'object_queue'])
    def test_queues(self, step, name):
        queue, expected = getattr(step[0], name), GOLDEN['expected'][name]
        assert queue.pointer.item() == expected['pointer']
        columns = torch.tensor(expected['first_columns'], dtype=torch.float64)
        torch.testing.assert_close(queue.keys.T[: len(columns), : columns.shape[1]], columns, rtol=0, atol=2e-6)

    def test_hinge_of_the_paper_on_the_same_embeddings(self, step):
        seen = step[1]
        pairs = losses.disjoint_pairs(seen['boxes_q'], seen['batch_index'])
        assert pairs.sum().item() == GOLDEN['expected']['paper_hinge_query_boxes']['pairs']
        value = losses.intra_image_hinge(seen['object_q'], pairs) / pairs.sum()
        assert value.item() == pytest.approx(self.expected['paper_hinge_query_boxes'], abs=1e-9)


def test_image_branch_equals_mmselfsup_moco(generator):
    model = MODELS.build(config(key_batch='none')).double().train()
    peer = MoCo(
        backbone=dict(
            type='mmdet.ResNet', depth=18, base_channels=8, out_indices=[3], norm_eval=False, frozen_stages=-1
        ),
        neck=dict(
            type='MoCoV2Neck',
            in_channels=64,
            hid_channels=32,
            out_channels=128,
            with_avg_pool=True,
            _scope_='mmselfsup',
        ),
        head=dict(type='mmselfsup.ContrastiveHead', loss=dict(type='mmcls.CrossEntropyLoss'), temperature=0.2),
        queue_len=64,
    )
    peer.backbone.load_state_dict(model.backbone.state_dict())
    for theirs, ours in [(0, 'fc1'), (2, 'fc2')]:
        peer.neck.mlp[theirs].load_state_dict(getattr(model.image_projector, ours).state_dict())
    peer = peer.double().train()
    peer.queue.copy_(model.image_queue.keys)
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (model, peer)]
    for step in range(3):
        views, samples = random_batch([2, 0, 3, 1], generator, dtype=torch.float64)
        loss, expected = model.loss(views, samples)['loss_img'], peer.loss(views, samples)['loss']
        # Both shuffle within one process or not at all, which changes neither BN's statistics nor the loss.
        assert loss.item() == pytest.approx(expected.item(), abs=1e-9), f'step {step}'
        for optimizer, value in zip(optimizers, (loss, expected), strict=True):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    peer_keys = dict(peer.encoder_k.module.named_parameters())
    for name, parameter in model.encoder_k.backbone.named_parameters():
        torch.testing.assert_close(parameter, peer_keys[f'0.{name}'], rtol=0, atol=1e-9)
    torch.testing.assert_close(model.image_queue.keys, peer.queue, rtol=0, atol=1e-9)


def test_every_parameter_gets_a_gradient_with_and_without_objects(generator):
    for counts in ([0, 3, 5, 2], [0, 0, 0, 0]):
        model = MODELS.build(config()).train()
        result = model.loss(*random_batch(counts, generator))
        sum(value for name, value in result.items() if 'loss' in name).backward()
        found = gradients(model)
        assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in found.values())
        assert found['image_projector.fc2.weight'].abs().max() > 0
        if not any(counts):
            assert result['loss_obj'].item() == result['loss_intra'].item() == 0
            assert found['object_projector.fc2.weight'].abs().max() == 0


def test_an_object_without_a_valid_candidate_is_left_out(generator):
    views, samples = random_batch([2, 3, 1, 2], generator)
    model = MODELS.build(config()).train()
    samples[1].pseudo_label.boxes_k[1] = torch.tensor([20.0, 20, 20, 50])  # no width
    samples[3].pseudo_label.boxes_k[0] = torch.tensor([300.0, 20, 340, 50])  # outside the view
    result = model.loss(views, samples)
    assert result['objects_per_image'].item() == 6 / 4
    assert model.object_queue.pointer.item() == 6
    assert all(torch.isfinite(value) for value in result.values())


def test_running_statistics_move_and_the_key_encoder_starts_as_the_query(generator):
    model = MODELS.build(config(key_batch='none')).train()
    model.init_weights()
    before = model.backbone.bn1.running_mean.clone()
    model.loss(*random_batch([2, 2], generator))
    assert not torch.equal(model.backbone.bn1.running_mean, before)
    for name, parameter in model.encoder_k.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


@pytest.mark.parametrize(
    'sizes, changes, passes',
    [
        ([2, 2, 2], {}, 1),
        ([2, 2, 2], dict(checkpointing=True), 1),
        ([2, 2, 2], dict(channels_last=True), 3),
        ([3, 2], {}, 2),
    ],
)
def test_split_groups_have_statistics_of_their_own(generator, sizes, changes, passes):
    # Groups of one batch must see, and do to the running statistics, what batches of their size do one after the other.
    checkpointing = 'checkpointing' in changes
    settings = {name: value for name, value in changes.items() if name != 'checkpointing'}
    other = MODELS.build(config(key_batch='split', **settings)).double().train()
    model = copy.deepcopy(other)
    for part in model.modules():
        if hasattr(part, 'with_cp'):
            part.with_cp = checkpointing
    views, _ = random_batch([0] * sum(sizes), generator, dtype=torch.float64)
    calls = []
    model.backbone.conv1.register_forward_pre_hook(lambda *_: calls.append(1))
    groups = model._groups_of_one_pass(sizes)
    embeddings, pyramid = model._encode(model, views[0], sizes, groups)
    ours = embeddings, [deinterleave(level, groups) for level in pyramid]
    apart = [other._encode(other, group, [len(group)], 1) for group in views[0].split(sizes)]
    theirs = (
        torch.cat([part for part, _ in apart]),
        [torch.cat(level) for level in zip(*(levels for _, levels in apart), strict=True)],
    )
    weights = [torch.rand(x.shape, generator=generator, dtype=x.dtype) for x in (theirs[0], *theirs[1])]
    for embeddings, pyramid in (ours, theirs):
        sum((x * weight).sum() for x, weight in zip((embeddings, *pyramid), weights, strict=True)).backward()
    for mine, expected in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=True):
        torch.testing.assert_close(mine, expected)
    assert len(calls) == passes
    if not checkpointing:  # which moves running statistics twice, whatever the layer
        for name, buffer in other.named_buffers():
            torch.testing.assert_close(model.get_buffer(name), buffer, msg=name)
    for name, parameter in other.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad, msg=name)


def test_features_are_those_of_the_whole_batch_even_after_a_split_step(generator):
    model = MODELS.build(config(key_batch='split')).double().train()
    fresh = copy.deepcopy(model)
    model.loss(*random_batch([2, 2], generator, dtype=torch.float64))
    (images, _), _ = random_batch([0] * 3, generator, dtype=torch.float64)  # 3: no two groups of equal size
    for level, expected in zip(model.extract_feat(images), fresh.extract_feat(images), strict=True):
        torch.testing.assert_close(level, expected)


@pytest.mark.parametrize('counts', [[2, 0, 3, 1, 4], [2, 0, 3, 1, 4, 2]])  # a pass for each group, and one for all
def test_key_images_and_boxes_come_back_to_their_own(generator, counts):
    # With batch statistics off, regrouping must change nothing at all.
    batch = random_batch(counts, generator, dtype=torch.float64)
    found = {}
    for mode in ('none', 'split'):
        torch.manual_seed(5)
        model = MODELS.build(config(key_batch=mode, bn_group=2)).double().eval()
        found[mode] = model.loss(*batch), model.object_queue.keys
    for name, value in found['none'][0].items():
        assert value.item() == pytest.approx(found['split'][0][name].item(), abs=1e-12), name
    torch.testing.assert_close(found['none'][1], found['split'][1])


def test_a_step_depends_on_seed_and_step_alone(generator):
    batch = random_batch([2, 3, 4], generator)
    totals = []
    for _ in range(2):
        torch.manual_seed(7)
        model = MODELS.build(config()).train()
        torch.rand(len(totals) * 5)  # other draws of the global generator must not matter
        totals.append([model.loss(*batch)['loss_obj'].item() for _ in range(2)])
    assert totals[0] == totals[1]
    assert totals[0][0] != totals[0][1]


def test_a_checkpoint_resumes_to_the_last_bit(generator):
    torch.manual_seed(1)
    first = MODELS.build(config()).train()
    batches = [random_batch([2, 3, 4], generator) for _ in range(4)]
    for batch in batches[:2]:
        first.loss(*batch)
    second = MODELS.build(config()).train()
    second.load_state_dict(first.state_dict())
    for batch in batches[2:]:
        a, b = first.loss(*batch), second.loss(*batch)
        assert {name: value.item() for name, value in a.items()} == {name: value.item() for name, value in b.items()}


def test_embed_objects_serves_boxes_on_any_device(generator):
    model = MODELS.build(config()).eval()
    views, samples = random_batch([3, 1], generator)
    boxes = torch.cat([one.pseudo_label.boxes_q for one in samples])
    with torch.no_grad():
        embeddings = model.embed_objects(model.extract_feat(views), boxes, torch.tensor([0, 0, 0, 1]))
    assert embeddings.shape == (4, 128)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))


def test_a_compiled_backbone_changes_neither_losses_nor_names(generator):
    batches = [random_batch([2, 3, 0, 1], generator) for _ in range(2)]
    found = []
    for compiled in (False, True):
        torch.manual_seed(4)
        model = MODELS.build(config()).train()
        if compiled:
            hook = CompileHook(parts=['backbone', 'encoder_k.backbone'], backend='aot_eager')
            hook.before_train(SimpleNamespace(model=model))
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for batch in batches:
            result = model.loss(*batch)
            optimizer.zero_grad()
            sum(value for name, value in result.items() if 'loss' in name).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        found.append((model, {name: value.item() for name, value in result.items()}))
    (plain, expected), (other, losses_of_compiled) = found
    assert losses_of_compiled == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert list(plain.state_dict()) == list(other.state_dict())
    torch.testing.assert_close(
        other.encoder_k.backbone.conv1.weight, plain.encoder_k.backbone.conv1.weight, rtol=1e-4, atol=1e-6
    )


def test_half_precision_follows_full_precision(generator):
    batch = random_batch([2, 3, 4, 1], generator)
    found = {}
    for half in (False, True):
        torch.manual_seed(2)
        model = MODELS.build(config()).train()
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=half):
            result = model.loss(*batch)
        assert all(value.dtype == torch.float32 for value in result.values())
        assert model.object_queue.keys.dtype == torch.float32
        sum(value for name, value in result.items() if 'loss' in name).backward()
        assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())
        found[half] = {name: value.item() for name, value in result.items()}
    for name, value in found[False].items():
        # bfloat16 has 8 bits of mantissa: steps of 0.4 % in every activation.
        assert found[True][name] == pytest.approx(value, rel=0.02, abs=0.02), name


def test_few_images_a_group_are_warned_of_once(generator):
    model = MODELS.build(config()).train()
    batch = random_batch([1, 1], generator)
    with pytest.warns(UserWarning, match='only 1 images share batch statistics') as caught:
        model.loss(*batch)
        model.loss(*batch)
    assert len([one for one in caught if 'share batch statistics' in str(one.message)]) == 1


def test_sync_asks_for_layers_that_synchronize(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    with pytest.raises(ValueError, match='needs norm_cfg=dict'):
        MODELS.build(config(key_batch='sync'))
    changes = config(key_batch='sync')
    changes['backbone']['norm_cfg'] = dict(type='SyncBN')
    assert MODELS.build(changes).key_batch == 'sync'


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(key_batch='other'), 'key_batch must be one of'),
        (dict(bn_group=0), 'bn_group must be at least 1'),
        (dict(queue_len='auto'), "queue_len='auto' needs the data set"),
        (dict(intra_loss=dict(type='mmselfsup.IntraImageLoss', mode='triplet')), 'include_original=True'),
    ],
)
def test_refuses_wrong_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(config(**changes))
