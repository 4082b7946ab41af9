"""central.toml: every mistake names its key; relative paths belong to the file's folder."""

from pathlib import Path

import pytest

from central.config import CentralSection, ConfigError, load_config

GOOD = """
[central]
listen = "tcp://127.0.0.1:5557"
keys = "keys"
data_dir = "data"
log = "logs/central.jsonl"
[[model]]
bundle = "zoo/bundle"
decoder = "/elsewhere/decoder"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "central.toml"
    path.write_text(text)
    return path


def test_relative_paths_are_relative_to_the_file(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    path = write(tmp_path / "conf", GOOD)
    monkeypatch.chdir(tmp_path)
    config = load_config(path.relative_to(tmp_path))
    assert config.central.data_dir == tmp_path / "conf/data"
    assert config.central.log == tmp_path / "conf/logs/central.jsonl"
    assert config.model[0].bundle == tmp_path / "conf/zoo/bundle"
    assert config.model[0].decoder == Path("/elsewhere/decoder")


def test_what_is_left_out_has_a_value(tmp_path):
    central = load_config(write(tmp_path, GOOD.replace('log = "logs/central.jsonl"\n', ""))).central
    assert (central.deadline_s, central.pictures, central.log) == (10.0, True, None)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('listen = "tcp://127.0.0.1:5557"', "", "central.listen: required"),
        ("tcp://127", "http://127", "central.listen"),
        ('"tcp://127.0.0.1:5557"', "5557", "central.listen"),
        ('data_dir = "data"', "", "central.data_dir: required"),
        ('data_dir = "data"', "data_dir = 3", "central.data_dir"),
        ("[[model]]", "deadline_s = 0\n[[model]]", "central.deadline_s"),
        ("[[model]]", "deadline_s = inf\n[[model]]", "central.deadline_s"),
        ("[[model]]", 'deadline_s = "10"\n[[model]]', "central.deadline_s"),
        ("[[model]]", "deadline_s = true\n[[model]]", "central.deadline_s"),
        ("[[model]]", 'pictures = "no"\n[[model]]', "central.pictures"),
        ("[[model]]", 'consistency_check = "yes"\n[[model]]', "central.consistency_check"),
        (
            "[[model]]",
            "dead_line_s = 1\n[[model]]",
            "line 7: [central] unknown key 'dead_line_s'; did you mean 'deadline_s'?",
        ),
        ("listen =", "listne =", "line 3: [central] unknown key 'listne'; did you mean 'listen'?"),
        ("[central]", "[centre]", "line 2: unknown section or key 'centre'; did you mean 'central'?"),
        ("[[model]]", "[model]", "line 7: expected [[model]], found [model]; write two brackets"),
        ("[[model]]", "[[models]]", "line 7: unknown section or key 'models'; did you mean 'model'?"),
        ("bundle =", "bundel =", "line 8: [model] unknown key 'bundel'; did you mean 'bundle'?"),
        (":5557", ":99999", "central.listen: expected a port of at most 65535, got 99999"),
        *(
            ("[[model]]", f'{line}:70000"\n[[model]]', f"{key}: expected a port of at most 65535")
            for line, key in (
                ('page_listen = "127.0.0.1', "central.page_listen"),
                ('metrics_listen = "127.0.0.1', "central.metrics_listen"),
                ('[gateway]\ntcp = "127.0.0.1', "gateway.tcp"),
            )
        ),
        ('bundle = "zoo/bundle"', "", "model.0.bundle: required"),
        ('decoder = "/elsewhere/decoder"', "decoder = 1", "model.0.decoder"),
    ],
)
def test_a_mistake_names_the_file_and_the_key(tmp_path, old, new, key):
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert f"{path}: {key}" in message
    assert "\n" not in message


def test_only_loopback_may_do_without_keys(tmp_path):
    trial = GOOD.replace('keys = "keys"', "insecure = true")
    assert load_config(write(tmp_path, trial)).central.insecure
    for address in ("tcp://localhost:5557", "tcp://[::1]:5557", "ipc://centre.sock"):
        load_config(write(tmp_path, trial.replace("tcp://127.0.0.1:5557", address)))
    for address in ("tcp://0.0.0.0:5557", "tcp://*:5557", "tcp://192.168.1.4:5557", "tcp://centre:5557"):
        with pytest.raises(ConfigError, match="only on loopback"):
            load_config(write(tmp_path, trial.replace("tcp://127.0.0.1:5557", address)))


def test_without_keys_and_without_saying_so_is_an_error(tmp_path):
    silent = write(tmp_path, GOOD.replace('keys = "keys"\n', ""))
    with pytest.raises(ConfigError, match="epic keys new"):
        load_config(silent)
    assert load_config(silent, insecure=True).central.insecure
    with pytest.raises(ConfigError, match="exclude each other"):
        load_config(write(tmp_path, GOOD), insecure=True)


def test_a_page_for_others_needs_a_token(tmp_path):
    """Without one only on loopback."""

    def load(lines):
        return load_config(write(tmp_path, GOOD.replace("[[model]]", lines + "\n[[model]]"))).central

    assert load("").page_listen is None
    assert load('page_listen = "127.0.0.1:8080"').read_page_token() is None
    assert load('page_listen = "[::1]:8080"').page_listen == "[::1]:8080"
    with pytest.raises(ConfigError, match=r"central.page_listen: without page_token .* not on 0.0.0.0:8080"):
        load('page_listen = "0.0.0.0:8080"')
    assert (
        load('page_listen = "0.0.0.0:8080"\npage_token = "0123456789abcdef"').read_page_token()
        == "0123456789abcdef"
    )
    with pytest.raises(ConfigError, match="central.page_token"):
        load('page_listen = "0.0.0.0:8080"\npage_token = "short"')
    with pytest.raises(ConfigError, match="exclude each other"):
        load('page_token = "0123456789abcdef"\npage_token_file = "token"')


def test_a_token_file_is_private_and_long_enough(tmp_path):
    token = tmp_path / "token"
    lines = 'page_listen = "0.0.0.0:8080"\npage_token_file = "token"\n[[model]]'
    central = load_config(write(tmp_path, GOOD.replace("[[model]]", lines))).central
    with pytest.raises(ConfigError, match="central.page_token_file: "):
        central.read_page_token()
    token.write_text("0123456789abcdef\n")
    token.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        central.read_page_token()
    token.chmod(0o600)
    assert central.read_page_token() == "0123456789abcdef"
    token.write_text("short\n")
    with pytest.raises(ConfigError, match="at least 16 characters"):
        central.read_page_token()


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match="not TOML"):
        load_config(write(tmp_path, "[central"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not TOML"):
        load_config(tmp_path / "binary.toml")


@pytest.mark.parametrize("line", ["origin_m = [nan, 0.0]", "origin_m = [0.0, inf]", "origin_m = [1.0]"])
def test_a_line_is_at_a_place_on_the_earth(tmp_path, line):
    with pytest.raises(ConfigError, match=r"line\.origin_m"):
        load_config(write(tmp_path, f"{GOOD}[line]\n{line}\nazimuth_deg = 30.0\n"))


@pytest.mark.parametrize("line", ['keys = "other"', 'centre = "tcp://127.0.0.1:1"', "insecure = true"])
def test_a_gateway_in_the_centre_has_the_centres_security(tmp_path, line):
    with_gateway = GOOD + '[gateway]\nports = ["/dev/ttyACM0"]\ntcp = "0.0.0.0:5558"\n'
    gateway = load_config(write(tmp_path, with_gateway)).gateway
    assert (gateway.ports, gateway.tcp, gateway.baud) == (["/dev/ttyACM0"], "0.0.0.0:5558", 115_200)
    with pytest.raises(ConfigError, match=f"gateway.{line.split()[0]}: for a gateway on its own"):
        load_config(write(tmp_path, with_gateway + line))


def test_without_keys_a_gateway_listens_on_loopback_only(tmp_path):
    trial = GOOD.replace('keys = "keys"', "insecure = true") + '[gateway]\ntcp = "127.0.0.1:5558"\n'
    load_config(write(tmp_path, trial))
    with pytest.raises(ConfigError, match="gateway.tcp: without keys only on loopback"):
        load_config(write(tmp_path, trial.replace('tcp = "127.0.0.1', 'tcp = "0.0.0.0')))


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("page", "page_listen", "127.0.0.1:8080"),
        ("metrics", "metrics_listen", "127.0.0.1:9108"),
        ("check", "consistency_check", True),
    ],
)
def test_old_names_of_keys_work_and_say_the_new_one(old, new, value):
    with pytest.warns(FutureWarning, match=f"central.{old} is deprecated; call it {new}"):
        section = CentralSection(listen="tcp://127.0.0.1:5557", data_dir="data", **{old: value})
    assert getattr(section, new) == value
    with pytest.raises(ValueError, match=f"remove {old}"):
        CentralSection(listen="tcp://127.0.0.1:5557", data_dir="data", **{old: value, new: value})
