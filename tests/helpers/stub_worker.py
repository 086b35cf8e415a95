"""Stands for ``ccop_mm.label_efficiency.worker``: writes metrics that are a function of the run, without training.

Environment variables: ``STUB_LOG``, a file that receives the name of every started run; ``STUB_FAIL``, part of the
names of runs that fail; ``STUB_WAIT``, part of the names of runs that never end.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import time
import zlib
from pathlib import Path


def stub_metrics(name):
    """Returns the metrics of a run by its name: more with more images, and highest at factor 1."""
    weights, images, kind, factor, seed = re.fullmatch(r'(.+)-(\d+)-(\w+)-x([\d.e+-]+)-seed(\d+)', name).groups()
    noise = zlib.crc32(f'{weights} {images} {kind} {seed}'.encode()) % 100 / 1e4
    penalty = 0.02 * abs(float(factor) - 1)
    ap = max(0.0, 0.002 * int(images) + noise - penalty)
    return dict(AP=ap, AP50=2 * ap, AP75=ap / 2)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('config', type=Path)
    parser.add_argument('--parent')
    args = parser.parse_args()
    name = args.config.parent.name
    with open(os.environ['STUB_LOG'], 'a') as file:
        file.write(f'{name}\n')
    if os.environ.get('STUB_FAIL', '\0') in name:
        sys.exit('error: this run fails on purpose')
    while os.environ.get('STUB_WAIT', '\0') in name:
        time.sleep(0.05)
    digest = hashlib.blake2b(args.config.read_bytes(), digest_size=16).hexdigest()
    seconds = dict(training=1.0, test=0.5)
    stored = dict(metrics=stub_metrics(name), diverged=False, seconds=seconds, config=digest)
    (args.config.parent / 'metrics.json').write_text(json.dumps(stored))


if __name__ == '__main__':
    main()
