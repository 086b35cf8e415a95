"""Tests of the documents: every command parses, the cheap ones run, and links, paths and names exist."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torchvision
import yaml
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmselfsup.registry import DATASETS, MODELS

import ccop_mm
from ccop_mm import cli
from ccop_mm.engine.hooks import ProbeHook
from ccop_mm.utils.images import HEIF_SUFFIXES, SUFFIXES

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ('README.md', 'CHANGELOG.md', 'CONTRIBUTING.md')),
    *sorted((ROOT / 'docs').glob('*.md')),
    *sorted((ROOT / 'configs').glob('*/README.md')),
]
CURRENT = [document for document in DOCUMENTS if document.name != 'CHANGELOG.md']  # the changelog lists old names
LAUNCHERS = ('tools/dist_train.sh', 'tools/slurm_train.sh')
# Commands that the documents only mention, with what a reader installs or types in a shell.
OTHER_PROGRAMS = ('.', 'pip', 'pytest', 'git', 'cd')


def read(name):
    return (ROOT / name).read_text(encoding='utf-8')


def document_id(path):
    return path.relative_to(ROOT).as_posix()


def blocks(text, language):
    """Code blocks of a language."""
    return re.findall(rf'^```{language}\n(.*?)^```', text, re.DOTALL | re.MULTILINE)


def commands(text):
    """Commands of the bash blocks and of inline code, each as a list of words."""
    lines = '\n'.join(blocks(text, 'bash')).replace('\\\n', ' ').splitlines()
    lines += re.findall(r'`((?:python|make|ccop-mm|tools/\S+\.sh) [^`]+)`', text)
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def strip_environment(words):
    """Removes the environment variables before a command and the redirection after it."""
    while re.match(r'[A-Z_]+=', words[0]):
        words = words[1:]
    return words[: words.index('>')] if '>' in words else words


def parse_arguments(script, arguments, monkeypatch):
    """Runs the argument parser of a script; raises SystemExit if it rejects the arguments."""
    assert (ROOT / script).is_file(), script
    spec = importlib.util.spec_from_file_location(f'documented_{Path(script).stem}', ROOT / script)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look up their module
    monkeypatch.syspath_prepend((ROOT / script).parent)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, 'argv', [script, *arguments])
    module.parse_args()


def check_command(words, monkeypatch):
    """Raises AssertionError or SystemExit if a documented command is not valid."""
    program, *arguments = strip_environment(words)
    configs = [word for word in arguments if word.startswith(('configs/', 'studies/')) and word.endswith('.py')]
    assert all((ROOT / config).is_file() for config in configs), configs
    if program == 'ccop-mm':
        assert arguments[0] in (*cli.COMMANDS, cli.DOCTOR), arguments[0]
        if arguments[0] != cli.DOCTOR and len(arguments) > 1:
            tool = f'tools/{cli.COMMANDS[arguments[0]]}'
            check_command([*(['python'] if tool.endswith('.py') else []), tool, *arguments[1:]], monkeypatch)
    elif program == 'make':
        makefile = read('Makefile')
        targets = [word for word in arguments if '=' not in word]
        assert targets and all(re.search(rf'^{target}:', makefile, re.MULTILINE) for target in targets), targets
        settings = [word.partition('=')[0] for word in arguments if '=' in word]
        assert all(re.search(rf'^{setting} \?=', makefile, re.MULTILINE) for setting in settings), settings
    elif program in LAUNCHERS:
        config = 0 if program.endswith('dist_train.sh') else 2
        rest = arguments[2:] if program.endswith('dist_train.sh') else arguments[3:]
        parse_arguments('tools/train.py', [arguments[config], *rest], monkeypatch)
    elif arguments[:1] == ['-m']:
        assert importlib.util.find_spec(arguments[1]), arguments[1]
    elif program == 'python' and len(arguments) == 1:  # a tool that is only mentioned
        assert (ROOT / arguments[0]).is_file(), arguments[0]
    elif program == 'python' and arguments[0] != '-c':
        parse_arguments(arguments[0], arguments[1:], monkeypatch)
    else:
        assert program in (*OTHER_PROGRAMS, 'python'), f'{program} is not known to this test'


@pytest.mark.parametrize('document', DOCUMENTS, ids=document_id)
def test_commands_parse(document, monkeypatch, capsys):
    for words in commands(document.read_text(encoding='utf-8')):
        try:
            check_command(words, monkeypatch)
        except SystemExit:
            pytest.fail(f'{document_id(document)}: {shlex.join(words)}\n{capsys.readouterr().err}')


def test_commands_of_the_documents_are_found():
    readme = commands(read('README.md'))
    assert ['python', 'tools/propose.py', 'my_images/', '--out', 'proposals.npz'] in readme
    for command in (['tools/dist_train.sh', 'my_ccop.py', '8'], ['make', 'demo'], ['make', 'test']):
        assert command in readme
    step_pages = [commands(read(f'docs/{step}.md')) for step in ('propose', 'pretrain', 'transfer', 'inspect')]
    assert min(map(len, step_pages)) >= 4
    assert ['tools/slurm_train.sh', 'partition', 'job', 'my_ccop.py'] in step_pages[1]


@pytest.mark.parametrize(
    'command',
    [
        'python tools/propose.py images',
        'python tools/absent.py',
        'python tools/propose.py images --no-such-option',
        'make absent',
        'make test ABSENT=1',
        'unknown program',
        'tools/dist_train.sh configs/ccop/absent.py 8',
        'tools/slurm_train.sh partition job my_ccop.py --no-such-option',
        'python -m ccop_mm.absent',
        'ccop-mm absent',
        'ccop-mm propose images --no-such-option',
    ],
)
def test_invalid_commands_are_rejected(command, monkeypatch, capsys):
    with pytest.raises((AssertionError, SystemExit)):
        check_command(shlex.split(command), monkeypatch)


def anchors(path):
    """Anchors that GitHub creates for the headings of a Markdown file."""
    headings = re.findall(r'^#+ (.+)$', path.read_text(encoding='utf-8'), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('document', DOCUMENTS, ids=document_id)
def test_links_lead_to_files_and_headings(document):
    broken = []
    for target in re.findall(r'\]\((?!https?://)([^)\s]+)', document.read_text(encoding='utf-8')):
        file, _, anchor = target.partition('#')
        path = document.parent / file if file else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


def test_every_document_is_reachable_from_the_index():
    index = ROOT / 'docs' / 'index.md'
    links = re.findall(r'\]\((?!https?://)([^)#\s]+)', index.read_text(encoding='utf-8'))
    linked = {(index.parent / link).resolve() for link in links}
    assert [document_id(path) for path in sorted((ROOT / 'docs').glob('*.md')) if path not in linked | {index}] == []


@pytest.mark.parametrize('document', CURRENT, ids=document_id)
def test_paths_in_inline_code_exist(document):
    paths = re.findall(
        r'`((?:ccop_mm|configs|tools|demo|studies|benchmarks|tests|docs|requirements|\.ci)/[\w./-]*)`',
        document.read_text(encoding='utf-8'),
    )
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_routes_in_the_design_are_short():
    """A box and a checkpoint can be followed through few files."""
    design = read('docs/design.md')
    for title, limit in (('From images to losses', 24), ('From a checkpoint to a detector', 5)):
        section = design.split(f'### {title}\n')[1].split('\n#')[0]
        files = set(re.findall(r'`([\w/]+\.py)`', section))
        assert 4 <= len(files) <= limit, (title, sorted(files))


def test_api_names_of_the_documents_exist():
    from ccop_mm import apis

    for document in ('README.md', 'docs/index.md'):
        section = read(document).split('`ccop_mm.apis`')[1].split(').')[0].split('([API]')[0]
        names = re.findall(r'`(\w+)`', section)
        assert len(names) >= 7 and all(callable(getattr(apis, name)) for name in names), (document, names)


def test_registered_names_of_the_documents_exist():
    import mmdet.registry
    import mmengine.registry
    import mmselfsup.registry

    rows = re.findall(r'^\| ((?:`[A-Z_]+`(?:, )?)+) \| (`.+) \|$', read('docs/api.md'), re.MULTILINE)
    assert len(rows) >= 5
    for registries, groups in rows:
        names, _, mmdet_names = groups.partition("mmdet's scope")
        for registry, group in zip(re.findall(r'\w+', registries), names.rstrip('; in').split('; '), strict=True):
            scope = mmengine.registry if registry == 'WEIGHT_INITIALIZERS' else mmselfsup.registry
            registered = getattr(scope, registry).module_dict
            documented = re.findall(r'`(\w+)`', group)
            assert documented and set(documented) <= set(registered), registry
        for name in re.findall(r'`(\w+)`', mmdet_names):
            assert name in getattr(mmdet.registry, registries.strip('`')).module_dict, name


def test_glossary_explains_every_logged_value():
    sources = ''.join(path.read_text(encoding='utf-8') for path in (ROOT / 'ccop_mm/engine/hooks').glob('*.py'))
    patterns = re.findall(r"update_scalar\(f?'train/([\w{}]+)'", sources)
    keys = {pattern.replace('{name}', name) for pattern in patterns for name in ('image', 'object')}
    assert {'zeta', 'beta', 'acceptance', 'rank_image', 'age_object', 'pairs_without_object'} <= keys
    keys |= {'loss_img', 'loss_obj', 'loss_intra', 'hardest_similarity', 'objects_per_image', 'probe/chance'}
    glossary = read('docs/glossary.md')
    assert [key for key in sorted(keys) if f'`{key}`' not in glossary] == []


def test_citation_file_matches_the_package():
    citation = yaml.safe_load(read('CITATION.cff'))
    assert citation['version'] == ccop_mm.__version__
    paper = citation['preferred-citation']
    assert paper['title'] in re.sub(r'\s+', ' ', read('README.md'))
    assert all(author['family-names'] in read('README.md') for author in paper['authors'])


def test_readme_is_short():
    lines = read('README.md').splitlines()
    assert len(lines) <= 150
    assert max(len(block.splitlines()) for block in re.findall(r'```\w*\n(.*?)```', '\n'.join(lines), re.DOTALL)) <= 12


@pytest.fixture
def my_images(tmp_path):
    """A folder for the commands of the documents: three images, annotations of them, and the repository's tools."""
    rng = np.random.default_rng(0)
    folder = tmp_path / 'my_images' / 'holiday'
    folder.mkdir(parents=True)
    content = dict(images=[], annotations=[], categories=[dict(id=1, name='block')])
    for number in range(3):
        image = np.full((120, 160, 3), 200, np.uint8)
        content['images'].append(dict(id=number, file_name=f'{number}.jpg', height=120, width=160))
        for _ in range(6):
            x, y = rng.integers(10, 110, 2).tolist()
            cv2.rectangle(image, (x, y), (x + 40, y + 30), rng.integers(0, 256, 3).tolist(), -1)
            annotation_id = len(content['annotations']) + 1
            box = [x, y, 40, min(30, 120 - y)]
            content['annotations'].append(dict(id=annotation_id, image_id=number, category_id=1, bbox=box, iscrowd=0))
        cv2.imwrite(str(folder / f'{number}.jpg'), image)
    (tmp_path / 'instances_val.json').write_text(json.dumps(content))
    (tmp_path / 'val').symlink_to(folder)
    for name in ('configs', 'tools'):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def write_config(document, folder):
    """Writes the ``my_ccop.py`` of a document."""
    (snippet,) = (block for block in blocks(read(document), 'python') if block.startswith('# my_ccop.py'))
    (folder / 'my_ccop.py').write_text(snippet)


def run_all(steps, folder):
    """Runs commands one after another."""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    for words in steps:
        command = [sys.executable, *words[1:]]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f'{shlex.join(words)}\n{done.stderr}'


@pytest.mark.slow
def test_readme_steps_run_as_written(my_images):
    write_config('README.md', my_images)
    steps = [words for words in commands(read('README.md')) if 'my_images/' in words]
    dry_run, _, *rest = steps
    assert dry_run[1] == 'tools/pretrain.py' and '--dry-run' in dry_run
    assert [words[1] for words in rest] == ['tools/propose.py', 'tools/analysis_tools/curriculum.py']
    run_all([dry_run, *rest], my_images)
    assert (my_images / 'work_dirs/my/finetune.py').is_file()
    assert (my_images / 'curriculum.png').stat().st_size > 10_000

    cfg = Config.fromfile(my_images / 'my_ccop.py')
    cfg.train_dataloader.dataset.data_root = f'{my_images}/my_images/'
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) == 3
    sample = dataset[0]
    assert len(sample['inputs']) == 2 and sample['inputs'][0].shape == (3, 224, 224)


@pytest.mark.slow
def test_step_pages_run_as_written(my_images):
    """Runs the commands that need neither a checkpoint, a finished training, a cluster nor the study."""
    write_config('docs/pretrain.md', my_images)
    elsewhere = {'--scheduler', '--shard', 'merge', 'CHECKPOINT', '--work-dir', 'DATA', 'work_dirs/my_ccop'}
    tools = ('tools/propose.py', 'tools/misc/', 'tools/analysis_tools/')
    steps = [
        words
        for page in ('propose', 'pretrain', 'inspect')
        for words in commands(read(f'docs/{page}.md'))
        if words[0] == 'python' and words[1].startswith(tools) and len(words) > 2 and not elsewhere & set(words)
        if not words[2].startswith('work_dirs/')
    ]
    ran = [' '.join(words[1:3]) for words in steps]
    assert ran == [
        'tools/propose.py my_images/',
        'tools/propose.py verify',
        'tools/misc/browse_proposals.py proposals.npz',
        'tools/propose.py export',
        'tools/propose.py import',
        'tools/misc/browse_views.py my_ccop.py',
        'tools/analysis_tools/pointing.py my_ccop.py',
        'tools/analysis_tools/knn_recall.py my_ccop.py',
        'tools/analysis_tools/curriculum.py proposals.npz',
    ]
    run_all(steps, my_images)
    for name in ('views.png', 'curriculum.png', 'imported.npz', 'random.json'):
        assert (my_images / name).stat().st_size > 200, name
    assert len(list((my_images / 'browse').iterdir())) == 3


def test_transfer_snippet_of_the_readme_names_the_initializer():
    (snippet,) = (block for block in blocks(read('README.md'), 'python') if 'CCOPPretrained' in block)
    settings = {}
    exec(snippet, settings)  # noqa: S102
    assert settings['custom_imports'] == dict(imports=['ccop_mm'])
    assert settings['model']['init_cfg']['type'] == 'CCOPPretrained'


def test_faq_lists_all_image_formats():
    (paragraph,) = re.findall(r'^\*\*Which image formats\?\*\*.*?\n\n', read('docs/faq.md'), re.MULTILINE | re.DOTALL)
    always, with_package = paragraph.split('pillow-heif')
    assert set(re.findall(r'`(\.\w+)`', always)) == SUFFIXES
    assert set(re.findall(r'`(\.\w+)`', with_package)) == HEIF_SUFFIXES


def test_probes_of_the_documents_are_those_of_the_hook():
    snippets = [block for block in blocks(read('docs/pretrain.md'), 'python') if block.startswith('probe = ')]
    (example,) = re.findall(r'^ +(probe = .*)$', ProbeHook.__doc__, re.MULTILINE)
    for snippet in [*snippets, example]:
        settings = {}
        exec(snippet, settings)  # noqa: S102
        assert ProbeHook(**settings['probe']).ann_file.name == 'instances_val.json'
    assert snippets


def test_no_document_replaces_the_hooks_of_a_pre_training_config():
    """A ``custom_hooks`` list drops ``SpatialCurriculumHook``."""
    snippets = [block for document in CURRENT for block in blocks(document.read_text(encoding='utf-8'), 'python')]
    assert len(snippets) >= 8
    assert [snippet for snippet in snippets if 'custom_hooks' in snippet] == []


def test_pre_training_starts_from_imagenet_weights_as_in_the_faq(tmp_path):
    (snippet,) = (block for block in blocks(read('docs/faq.md'), 'python') if 'BackbonePretrained' in block)
    settings = {}
    exec(snippet, settings)  # noqa: S102
    torch.manual_seed(0)
    weights = torchvision.models.resnet18().state_dict()
    torch.save(weights, tmp_path / 'resnet18.pth')
    cfg = Config.fromfile(ROOT / 'configs/ccop/ccop_r18_fpn_demo.py')
    assert settings['model']['init_cfg']['type'] == 'BackbonePretrained'
    cfg.model.init_cfg = dict(settings['model']['init_cfg'], checkpoint=str(tmp_path / 'resnet18.pth'))
    cfg.model.queue_len = cfg.model.object_queue_len = 8
    with DefaultScope.overwrite_default_scope('mmselfsup'):
        model = MODELS.build(cfg.model)
        before = model.neck.lateral_convs[0].conv.weight.clone()
        model.init_weights()
    loaded = model.backbone.state_dict()
    assert set(loaded) == {key for key in weights if not key.startswith('fc.')}
    assert all(torch.equal(loaded[key], weights[key]) for key in loaded)
    assert not torch.equal(model.neck.lateral_convs[0].conv.weight, before)  # initialized, not loaded
