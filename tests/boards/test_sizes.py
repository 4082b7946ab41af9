import pytest
from hypothesis import given
from hypothesis import strategies as st

from boards.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("512 B", 512), ("192 KiB", 196_608), ("1.5 MiB", 1_572_864), ("8 MB", 8_000_000), ("2 GiB", 2**31)],
)
def test_a_size_with_its_unit_is_read(text, size_bytes):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["512", "512KiB", "32 megs", "-1 KiB", "0 B", "0.3 B", "1 kib", 4096, None, ""]
)
def test_a_size_without_a_clear_unit_is_refused(text):
    with pytest.raises(ValueError, match="expected a"):
        parse_size(text)


@given(st.integers(1, 1023), st.sampled_from([1, 2**10, 2**20, 2**30]))
def test_whole_binary_sizes_survive_writing_and_reading(count, unit):
    assert parse_size(format_size(count * unit)) == count * unit
