"""Which datasets of a config are checked."""

from detector_checks import check_training
from small_detector import detector_config


def test_remote_data_is_not_checked(root):
    cfg = detector_config(root)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = 's3://bucket/'
    report = check_training(cfg)
    assert report.findings == [] and report.seen[0] == '3 classes'
