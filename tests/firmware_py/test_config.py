"""``node.toml``: every mistake is named."""

import dataclasses
import re
from pathlib import Path

import pytest

from firmware_py.runtime.config import ConfigError, load_config

GOOD = """
[node]
device = 2
bundle = "bundle"
[link]
endpoint = "tcp://127.0.0.1:5557"
insecure = true
[source]
kind = "files"
paths = ["a.npy"]
"""


def load(tmp_path, text):
    (tmp_path / "node.toml").write_text(text)
    return load_config(tmp_path / "node.toml")


def test_defaults_and_paths_relative_to_the_file(tmp_path):
    config = load(tmp_path, GOOD)
    assert config.node.bundle == tmp_path / "bundle"
    assert config.source.paths == (tmp_path / "a.npy",)
    assert config.node.state_dir == tmp_path / "state"
    assert (config.link.kind, config.link.window, config.run.log) == ("zmq", 16, None)


def test_everything_can_be_said(tmp_path):
    text = GOOD.replace(
        "device = 2", "device = 2\nsurvey = 9\nreceivers = [28, 41]\nspool_records = 5\nbits = 4"
    )
    config = load(
        tmp_path, text + 'interval_s = 1\nlimit = 3\n[run]\nexit_when_drained = true\nlog = "n.jsonl"'
    )
    assert config.node.receivers == (28, 41)
    assert config.node.bits == 4
    assert config.source.interval_s == 1.0
    assert config.run.log == tmp_path / "n.jsonl"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[link]", "[link", "not TOML"),
        ("device = 2", "device = 2\nbits = 5", r"\[node\] bits: expected 8 or 4, got 5"),
        ("device = 2\n", "", r"\[node\] device is missing"),
        ("device = 2", 'device = "two"', r"\[node\] device: expected int, got 'two'"),
        ("device = 2", "device = true", r"\[node\] device: expected int, got True"),
        ("device = 2", "device = 70000", r"\[node\] device: expected 0 to 65535, got 70000"),
        (
            'paths = ["a.npy"]',
            'paths = ["a.npy"]\nkeep_free_mib = -1',
            r"\[source\] keep_free_mib: expected 0 \(remove nothing\) or more, got -1",
        ),
        (
            "device = 2",
            "devise = 2",
            r"line \d+: \[node\] unknown key 'devise'; did you mean 'device'\? known are",
        ),
        (
            "[link]\nendpoint",
            "[lynk]\nendpoint",
            r"line \d+: unknown section or key 'lynk'; did you mean 'link'\?",
        ),
        (
            "[source]",
            "[surprise]\n[source]",
            r"line \d+: unknown section or key 'surprise'; .*known are node, link",
        ),
        (":5557", ":99999", r"\[link\] endpoint: expected a port of at most 65535"),
        ('kind = "files"', 'kind = "tape"', r"""\[source\] kind: expected "files" or "folder", got 'tape'"""),
        ('paths = ["a.npy"]', "", "expected at least one .npy file to replay"),
        ('paths = ["a.npy"]', "paths = [1]", r"\[source\] paths: expected tuple\[path, ...\], got \[1\]"),
        ("insecure = true", "", "copy what `epic keys new device-N` made"),
        (
            "insecure = true",
            'server_key = "k"',
            "expected server_key, public_key, secret_key, got only server_key",
        ),
        ("insecure = true", 'secret = "k"', "secret: not for kind 'zmq'"),
        (
            "insecure = true",
            'insecure = true\npublic_key = "k"',
            "public_key and insecure exclude each other",
        ),
        ("127.0.0.1", "192.0.2.1", "expected an endpoint on this machine"),
        (
            "insecure = true",
            'kind = "tcp"\nserver_key = "k"',
            "server_key: not for kind 'tcp'; it takes secret",
        ),
        ("insecure = true", 'kind = "serial"', r"\[link\] secret: missing"),
        ("insecure = true", "insecure = true\nbaud = 0", r"\[link\] baud: expected more than 0"),
        ('["a.npy"]', '["a.npy"]\nlimit = -1', r"\[source\] limit: expected 0 \(no limit\) or more, got -1"),
        ('["a.npy"]', '["a.npy"]\ninterval_s = nan', r"\[source\] interval_s: expected 0 or more, got nan"),
        ('5557"', '5557"\nresend_s = 0', r"\[link\] resend_s: expected more than 0, got 0.0"),
        (
            '5557"',
            '5557"\nkind = "pigeon"',
            r"""\[link\] kind: expected zmq or tcp or serial, got 'pigeon'""",
        ),
    ],
)
def test_a_mistake_is_named(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, GOOD.replace(old, new))


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match=r"node.toml: cannot be read \(No such file"):
        load_config(tmp_path / "node.toml")


def test_a_file_that_is_not_text(tmp_path):
    (tmp_path / "node.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"node.toml: not text in UTF-8"):
        load_config(tmp_path / "node.toml")


def test_the_readme_names_every_key_with_its_default(tmp_path):
    readme = (Path(__file__).parents[2] / "firmware_py" / "README.md").read_text()
    example = readme[readme.index("    [node]") : readme.index("**What happens")].replace("    ", "")
    short = load(tmp_path, example)
    defaults = [
        line
        for line in example.splitlines()
        if re.match(r"# \w+ = ", line) and not re.search("# (e.g.|or:)", line)
    ]
    without = "\n".join(line for line in example.splitlines() if "# or:" not in line)
    assert load(tmp_path, without.replace("\n# ", "\n")) != short, "the examples differ from the defaults"
    for line in defaults:
        example = example.replace(line, line.removeprefix("# "))
    assert load(tmp_path, example) == short
    for section in dataclasses.fields(short):
        for key in dataclasses.fields(getattr(short, section.name)):
            assert re.search(rf"^(# )?{key.name} = ", example, re.M), f"[{section.name}] {key.name}"
