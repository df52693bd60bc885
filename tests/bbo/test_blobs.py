"""Blobs: what comes back is what was stored, or an error that names the file."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bbo.errors import BlobError
from bbo.ledger.blobs import BlobStore, make_directory

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path)


def _snapshot(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


class TestTensors:
    def test_come_back_bit_for_bit(self, store: BlobStore) -> None:
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        tensors = {
            "x0": x,
            "same_memory": x,
            "view": x.T,
            "double": x.double(),
            "half": x.half(),
            "count": torch.arange(5),
            "flag": torch.tensor([True, False]),
            "scalar": torch.tensor(float("nan")),
            "empty": torch.empty(0, 4),
        }
        found = store.get_tensors(store.put_tensors(tensors))
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name].nan_to_num(7), tensor.nan_to_num(7))

    def test_keep_no_gradient(self, store: BlobStore) -> None:
        x = torch.ones(2, requires_grad=True)
        assert not store.get_tensors(store.put_tensors({"x": x * 2}))["x"].requires_grad

    def test_have_one_name_whatever_their_order_and_strides(self, store: BlobStore) -> None:
        a, b = torch.arange(6.0).view(2, 3), torch.ones(2)
        strided = a.T.contiguous().T
        assert store.put_tensors({"a": a, "b": b}) == store.put_tensors({"b": b, "a": strided})

    @pytest.mark.parametrize(
        "other",
        [{"a": torch.zeros(3)}, {"b": torch.ones(3)}, {"a": torch.ones(3, 1)}, {"a": torch.ones(3).double()}],
    )
    def test_that_differ_differ_in_name(self, store: BlobStore, other: dict[str, torch.Tensor]) -> None:
        assert store.put_tensors({"a": torch.ones(3)}) != store.put_tensors(other)

    def test_are_not_read_from_other_bytes(self, store: BlobStore) -> None:
        with pytest.raises(BlobError, match="holds no tensors"):
            store.get_tensors(store.put_bytes(b"no safetensors"))


class TestWriting:
    def test_the_same_content_writes_nothing(self, store: BlobStore, tmp_path: Path) -> None:
        sha256 = store.put_bytes(b"data")
        before = _snapshot(tmp_path / "blobs")
        assert store.put_bytes(b"data") == sha256
        assert _snapshot(tmp_path / "blobs") == before == {sha256: before[sha256]}

    def test_a_torn_blob_is_written_again(self, store: BlobStore) -> None:
        sha256 = store.put_bytes(b"some data")
        store.path(sha256).write_bytes(b"some")
        assert store.put_bytes(b"some data") == sha256
        assert store.get_bytes(sha256) == b"some data"

    def test_goes_to_disk_before_it_has_its_name(
        self, store: BlobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_directory(store.path("0" * 64).parent)
        calls: list[str] = []
        fsync, replace = os.fsync, os.replace

        def noted_fsync(descriptor: int) -> None:
            calls.append("directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
            fsync(descriptor)

        def noted_replace(source: Path, target: Path) -> None:
            assert source.read_bytes() == b"data"
            calls.append("rename")
            replace(source, target)

        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(os, "replace", noted_replace)
        store.put_bytes(b"data")
        assert calls == ["file", "rename", "directory"]
        store.put_bytes(b"data")
        assert calls[3:] == ["directory"], "an entry that a killed driver left must reach the disk too"

    def test_a_full_disk_is_one_clear_line_and_leaves_nothing(
        self, store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(descriptor: int) -> None:
            if not os.path.isdir(f"/proc/self/fd/{descriptor}"):
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(BlobError, match=r"cannot write the blob .*: No space left on device; free"):
            store.put_bytes(b"data")
        assert list((tmp_path / "blobs").iterdir()) == []

    def test_makes_directories_that_outlast_a_power_cut(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[str] = []
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
        make_directory(tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b").is_dir()
        assert synced == [str(tmp_path), str(tmp_path / "a")]


class TestDamage:
    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[:-1],
            lambda data: data[:0],
            lambda data: data + b"\0",
            lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:],
        ],
        ids=["torn", "empty", "longer", "flipped"],
    )
    def test_is_named_with_both_hashes(self, store: BlobStore, damage) -> None:
        sha256 = store.put_tensors({"x": torch.arange(10)})
        path = store.path(sha256)
        path.write_bytes(damage(path.read_bytes()))
        pattern = (
            f"{re.escape(str(path))} is damaged: expected sha256 {sha256}, got (?!{sha256})[0-9a-f]{{64}}"
        )
        for read in (store.get_bytes, store.get_tensors):
            with pytest.raises(BlobError, match=pattern):
                read(sha256)

    def test_a_missing_blob_is_named(self, store: BlobStore) -> None:
        sha256 = store.put_bytes(b"data")
        assert sha256 in store
        store.path(sha256).unlink()
        assert sha256 not in store
        with pytest.raises(BlobError, match=f"{re.escape(str(store.path(sha256)))}: No such file"):
            store.get_bytes(sha256)

    @pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "0" * 63, "0" * 64 + "\n"])
    def test_no_name_leads_out_of_the_folder(self, store: BlobStore, name: str) -> None:
        with pytest.raises(BlobError, match="64 hexadecimal digits"):
            store.get_bytes(name)


def test_ledger_and_blobs_do_not_import_torch() -> None:
    code = "import sys, bbo.ledger.blobs, bbo.errors, bbo.ledger; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
