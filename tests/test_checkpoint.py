"""A checkpoint is whole or absent, and damage is seen before use."""

import hashlib
import json
import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save

from sfumato import CheckpointError, checkpoint, streaming

STATE = {"net": {"weight": torch.arange(6.0).reshape(2, 3)}}


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "checkpoints" / "step-00000001"
    checkpoint.write(path, STATE, {"words.json": b"{}"}, {"step": 1})
    return path


def message(call, *arguments):
    with pytest.raises(CheckpointError) as error:
        call(*arguments)
    return str(error.value)


def test_what_is_written_is_read(written):
    states, files = checkpoint.read(written)
    assert torch.equal(states["net"]["weight"], STATE["net"]["weight"])
    assert files == {"words.json": b"{}"}
    assert checkpoint.facts(written) == {"step": 1}
    assert [path.name for path in written.parent.iterdir()] == ["step-00000001"]


def test_a_stream_is_what_safetensors_writes(tmp_path, monkeypatch):
    """To the byte, with every dtype, in one part or in many."""
    state = {
        f"{name}.{i}": torch.arange(3 * i, device="cpu").reshape(i, 3).to(dtype)
        for i, dtype in enumerate(streaming.DTYPES)
        for name in ("é", "b", "a")
    }
    state["transposed"], state["one"] = torch.randn(4, 5).T, torch.tensor(3.0)
    for part in (1 << 25, 40):
        monkeypatch.setattr(streaming, "PART", part)
        digest = streaming.write(tmp_path / "ours", state)
        content = (tmp_path / "ours").read_bytes()
        assert content == save({name: tensor.contiguous() for name, tensor in state.items()})
        assert digest == hashlib.sha256(content).hexdigest()
    assert torch.equal(load_file(tmp_path / "ours")["transposed"], state["transposed"])


def test_a_dtype_that_is_not_kept_is_named(tmp_path):
    state = {"net": {"a": torch.zeros(2, dtype=torch.complex64)}}
    assert message(checkpoint.write, tmp_path / "step-1", state, {}, {}) == (
        f"{tmp_path / '.step-1'}.{os.getpid()}/net.safetensors: a is of dtype torch.complex64"
    )
    assert list(tmp_path.iterdir()) == []


def test_files_have_the_mode_of_the_umask(written, tmp_path):
    (tmp_path / "plain").write_text("")
    plain = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    for path in written.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == plain


def test_a_flipped_bit_is_seen(written):
    path = written / "net.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert message(checkpoint.read, written) == (
        f"{path}: differs from its hash in the manifest: it is damaged"
    )


def test_a_missing_file_is_named(written):
    (written / "words.json").unlink()
    assert message(checkpoint.read, written) == (
        f"{written / 'words.json'}: cannot be read: No such file or directory"
    )


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/b"])
def test_a_manifest_cannot_lead_outside(written, name):
    manifest = json.loads((written / "manifest.json").read_text())
    manifest.pop("sha256")
    manifest["files"] = {name: "0" * 64}
    (written / "manifest.json").write_bytes(checkpoint.sealed(manifest))
    assert "the manifest names a path outside the checkpoint" in message(checkpoint.read, written)


def test_a_link_is_not_followed(written, tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"{}")
    (written / "words.json").unlink()
    (written / "words.json").symlink_to(tmp_path / "elsewhere")
    assert "the manifest names a path outside the checkpoint" in message(checkpoint.read, written)


def test_a_pickle_under_a_safetensors_name_is_refused(tmp_path):
    path = tmp_path / "fake"
    content = b"\x80\x04\x95" + b"\x00" * 64
    checkpoint.write(path, {}, {"net.safetensors": content}, {})
    assert message(checkpoint.read, path).startswith(
        f"{path / 'net.safetensors'}: is not safetensors"
    )


def test_without_a_manifest_it_is_no_checkpoint(tmp_path):
    assert message(checkpoint.read, tmp_path) == (
        f"{tmp_path}: is not a checkpoint: its manifest.json is missing or unreadable"
    )


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "step-1"
    assert message(checkpoint.write, path, STATE, {}, {}) == (
        f"{path}: cannot be written: Not a directory"
    )
    assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_another_architecture_is_shown(tmp_path):
    module = torch.nn.Linear(3, 4)
    state = {"weight": torch.zeros(2, 3), "scale": torch.zeros(1)}
    assert message(checkpoint.restore, module, state, "here") == (
        "here: holds another architecture:\n"
        "  bias: missing\n"
        "  scale: not in the model\n"
        "  weight: (2, 3) here, (4, 3) in the model"
    )
