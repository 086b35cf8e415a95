import pytest
import torch

from ccop_mm.evaluation import chance_recall, format_knn_report, knn_recall, knn_report


@pytest.fixture
def features(generator):
    return {
        'backbone': torch.randn(30, 8, generator=generator),
        'embedding': torch.randn(30, 4, generator=generator),
        'labels': torch.randint(4, (30,), generator=generator),
    }


def test_metrics_have_the_right_keys(features):
    report = knn_report(features, ks=(2, 9, 99))
    backbone, embedding = (knn_recall(features[name], features['labels'], (2, 9)) for name in ('backbone', 'embedding'))
    assert report == {
        'num_objects': 30,
        'num_classes': 4,
        'chance': chance_recall(features['labels']),
        'backbone@2': backbone[2],
        'backbone@9': backbone[9],
        'embedding@2': embedding[2],
        'embedding@9': embedding[9],
    }


def test_table():
    report = {'num_objects': 7, 'num_classes': 3, 'chance': 0.25}
    report |= {'backbone@1': 0.5, 'backbone@20': 0.375, 'embedding@1': 1.0, 'embedding@20': 0.0625}
    title, header, *rows = format_knn_report(report).splitlines()
    assert '7 objects' in title and '3 classes' in title
    assert header.split() == ['k', 'backbone', 'feature', 'embedding', 'chance']
    assert [row.split() for row in rows] == [['1', '50.0', '100.0', '25.0'], ['20', '37.5', '6.2', '25.0']]
    assert {len(row) for row in rows} == {len(header)}  # columns are aligned
