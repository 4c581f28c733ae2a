"""Weights are read ahead whole, in any order, and no damaged byte passes."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_trainer.models import reading, weight_files
from lora_trainer.models.reading import DamagedWeightsError, ReadAhead
from lora_trainer.models.weight_files import read_spans, write_header, write_tensor

pytestmark = pytest.mark.gpu_stack


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    for module in (weight_files, reading):
        monkeypatch.setattr(module, "PIECE_BYTES", 100)


def some_tensors():
    chance = torch.Generator().manual_seed(0)
    shapes = {f"model.layers.{n}.weight": (n + 1, 50) for n in range(12)} | {"scalar": (), "empty": (0, 4)}
    tensors = {name: torch.randn(shape, generator=chance) for name, shape in shapes.items()}
    return tensors | {"half": torch.ones(7, dtype=torch.bfloat16), "bytes": torch.arange(250, dtype=torch.uint8)}


def write(path, tensors):
    checksums = {}
    with path.open("wb") as file:
        write_header(file, tensors)
        for name, tensor in tensors.items():
            checksums[name] = list(write_tensor(file, tensor))
    return checksums


def test_written_file_is_one_that_the_library_reads(tmp_path):
    tensors = some_tensors()
    write(tmp_path / "ours", tensors)
    loaded = load_file(tmp_path / "ours")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("most_bytes", [1, 1500, 1 << 20])
def test_tensors_are_whole_in_whatever_order_and_room(tmp_path, backwards, most_bytes):
    tensors = some_tensors()
    save_file(tensors, tmp_path / "file")
    with ReadAhead(read_spans(tmp_path / "file"), pinned=False, most_bytes=most_bytes, threads=3) as reader:
        for name in sorted(tensors, reverse=backwards):
            assert torch.equal(reader.tensor(name), tensors[name]), name
        assert torch.equal(reader.tensor("half"), tensors["half"]), "the same can be asked for again"


def test_reading_can_end_before_all_was_asked_for(tmp_path):
    save_file(some_tensors(), tmp_path / "file")
    with ReadAhead(read_spans(tmp_path / "file"), pinned=False, most_bytes=1) as reader:
        reader.tensor("half")
    assert not any(thread.is_alive() for thread in reader._threads)


def test_flipped_bit_is_noticed_in_the_tensor_that_has_it(tmp_path):
    tensors, path = some_tensors(), tmp_path / "file"
    checksums = write(path, tensors)
    spans = read_spans(path)
    content = bytearray(path.read_bytes())
    content[spans["model.layers.9.weight"].offset + 777] ^= 1
    path.write_bytes(content)
    with ReadAhead(spans, pinned=False, checksums=checksums) as reader:
        assert torch.equal(reader.tensor("model.layers.8.weight"), tensors["model.layers.8.weight"])
        with pytest.raises(DamagedWeightsError):
            reader.tensor("model.layers.9.weight")


def test_file_that_becomes_shorter_is_noticed(tmp_path):
    path = tmp_path / "file"
    save_file({"a": torch.ones(1000)}, path)
    spans = read_spans(path)
    path.write_bytes(path.read_bytes()[:-4])
    with ReadAhead(spans, pinned=False) as reader, pytest.raises(DamagedWeightsError):
        reader.tensor("a")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        (1 << 40).to_bytes(8, "little"),
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"null",
        (13).to_bytes(8, "little") + b'{"a":{"b":1}}',
        (62).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}        ' + b"1234",
        (62).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,8]}}        ' + b"12345678",
        (62).to_bytes(8, "little") + b'{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}        ' + b"12345678",
    ],
)
def test_file_that_is_no_whole_safetensors_is_refused(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=r".+"):
        read_spans(tmp_path / "file")
