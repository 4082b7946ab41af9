import re

import pytest

from boards.profile import PROFILE_FOLDER, BoardError, board_names, load_board

EXPECTED = {
    "generic-linux",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "raspberry-pi-zero-2w",
    "coral-usb-accelerator",
    "coral-dev-board",
    "coral-dev-board-micro",
    "openmv-rt1062",
    "openmv-h7-plus",
    "arduino-nicla-vision",
    "esp32-s3",
    "esp32-s3-psram",
    "esp32-s3-esp-idf",
    "esp32-c3",
    "raspberry-pi-pico-w",
    "raspberry-pi-pico-2-w",
    "teensy-4-1",
    "arduino-giga-r1",
    "arduino-portenta-h7",
    "openmv-ae3",
    "openmv-n6",
    "corstone-300-ethos-u55",
}


def test_the_promised_boards_are_there():
    assert set(board_names()) >= EXPECTED


@pytest.mark.parametrize("name", board_names())
def test_each_profile_holds_together(name):
    board = load_board(name)
    figures = [board.memory, board.flash, board.arena_limit, board.model_limit, board.operators, board.links]
    assert all(figure.source for figure in [*figures, board.install, *board.usb])
    # a status above "documented" names the test that ran
    named = re.search(r"tests/\S+\.py", board.status_note)
    assert board.status == "documented" or (named and (PROFILE_FOLDER.parents[1] / named[0]).is_file())
    assert board.model_limit.size >= 256 * 1024
    # what no command serves is by hand, and says what to do; a microcontroller's device runs by `ml` or viper
    assert (board.runtime in ("ml", "viper")) == (board.install.by == "mpremote")
    if board.install.by == "mpremote":
        assert board.inference.seconds < 2 and board.ports.uarts and board.install.says_it_is


@pytest.fixture
def edited(tmp_path):
    """Write a copy of a good profile with one replacement; returns a loader of it."""

    def load(old, new):
        text = (PROFILE_FOLDER / "esp32-s3-esp-idf.toml").read_text()
        assert old in text
        (tmp_path / "esp32-s3-esp-idf.toml").write_text(text.replace(old, new, 1))
        return load_board("esp32-s3-esp-idf", tmp_path)

    return load


def test_an_unedited_copy_loads(edited):
    assert edited("esp32-s3-esp-idf", "esp32-s3-esp-idf").memory.size == 512 * 1024


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('size = "512 KiB"', "size = 512", r"memory\.size: expected a size such as .* got 512"),
        ('size = "512 KiB"', 'size = "512 kB"', r"memory\.size: expected a size such as .* got '512 kB'"),
        (
            'size = "512 KiB"',
            'sise = "512 KiB"',
            r"line \d+: \[memory\] unknown key 'sise'; did you mean 'size'\?",
        ),
        (
            'kind = "micro',
            'sort = "x"\nkind = "micro',
            r"line \d+: unknown section or key 'sort'; .*known are name, title",
        ),
        (
            'status = "documented"',
            'status = "certified"',
            r"status: .*'verified in emulation'.*got 'certified'",
        ),
        (
            'size = "192 KiB"',
            'size = "1 MiB"',
            r"toml: arena_limit: expected at most the 512 KiB of memory, got 1 MiB",
        ),
        (
            'size = "8 MiB"',
            'size = "64 KiB"',
            r"model_limit: expected at most the 64 KiB of flash, got 256 KiB",
        ),
        (
            'runtime = "tflite-micro"',
            'runtime = "ethos-u"',
            r"compiler: expected 'vela' for .*'ethos-u', got None",
        ),
        (
            'runtime = "tflite-micro"',
            'runtime = "litert"',
            r"kernels: expected of the runtimes 'ml' and 'tflite-micro' and of no",
        ),
        (
            '"RELU6"',
            '"GELU"',
            r"operators\.names: expected operators of the project's list .* got \['GELU'\]",
        ),
        ('id = "303a:1001"', 'id = "303A:1001"', r"usb\.0\.id: .*got '303A:1001'"),
        ('kinds = ["wifi"', 'kinds = ["lora"', r"links\.kinds\.0: .*got 'lora'"),
        (
            'name = "esp32-s3-esp-idf"',
            'name = "esp32"',
            r"expected name = 'esp32-s3-esp-idf' as the file is called, got 'esp32'",
        ),
        ('name = "esp32-s3-esp-idf"', "name = esp32", r"expected TOML"),
    ],
)
def test_a_wrong_entry_is_named_with_what_was_expected(edited, old, new, said):
    with pytest.raises(BoardError, match=said) as caught:
        edited(old, new)
    assert "esp32-s3-esp-idf.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_section_is_named(tmp_path):
    text = (PROFILE_FOLDER / "esp32-s3-esp-idf.toml").read_text()
    start, end = text.index("[arena_limit]"), text.index("[model_limit]")
    (tmp_path / "esp32-s3-esp-idf.toml").write_text(text[:start] + text[end:])
    with pytest.raises(BoardError, match="entry 'arena_limit' is missing; add it"):
        load_board("esp32-s3-esp-idf", tmp_path)


def test_an_unknown_board_is_refused_with_the_closest_name():
    with pytest.raises(BoardError, match="no board 'raspbery-pi-4'; did you mean 'raspberry-pi-4'"):
        load_board("raspbery-pi-4")


def test_a_name_cannot_lead_out_of_the_folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "evil.toml").write_text("")
    with pytest.raises(BoardError, match="no board"):
        load_board("../evil", tmp_path / "inner")


def test_a_profile_of_one_s_own_is_given_by_its_path(tmp_path, monkeypatch):
    text = (PROFILE_FOLDER / "esp32-s3-esp-idf.toml").read_text()
    (tmp_path / "my-board.toml").write_text(text.replace('name = "esp32-s3-esp-idf"', 'name = "my-board"'))
    monkeypatch.chdir(tmp_path)
    assert load_board("./my-board.toml").name == "my-board"
    with pytest.raises(BoardError, match="no-board.toml: expected a board profile, found no file"):
        load_board("no-board.toml")
    (tmp_path / "other.toml").write_text(text)
    with pytest.raises(BoardError, match="expected name = 'other' as the file is called"):
        load_board("other.toml")


def test_a_uart_is_either_usable_or_refused_and_a_heap_s_largest_block_is_the_arena_s(tmp_path):
    text = (PROFILE_FOLDER / "openmv-rt1062.toml").read_text()
    for old, new, said in (
        ('"0" = "Bluetooth"', '"1" = "Bluetooth"', r"expected either uarts or refused, got \['1'\] in both"),
        (
            'size = "8 MiB"\nsource = "openmv',
            'size = "4 MiB"\nsource = "openmv',
            "the largest block of heap, 8 MiB",
        ),
    ):
        assert old in text
        (tmp_path / "openmv-rt1062.toml").write_text(text.replace(old, new, 1))
        with pytest.raises(BoardError, match=said):
            load_board("openmv-rt1062", tmp_path)


def test_a_microcontroller_s_own_words_name_one_profile_at_most_two_with_and_without_psram():
    says = {name: load_board(name).install.says_it_is for name in board_names()}
    spoken = [text for name, text in says.items() if load_board(name).install.by == "mpremote"]
    assert len(spoken) - len(set(spoken)) == 1
    assert says["esp32-s3"] == says["esp32-s3-psram"]
    assert says["raspberry-pi-pico-w"] not in "Raspberry Pi Pico 2 W with RP2350"
