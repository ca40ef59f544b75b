"""Saving: whole or not at all, the same bytes every time, nothing of an existing checkpoint lost."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from indexshare import load_model, save_model
from indexshare.checkpoint import save, tensor_files
from indexshare.checkpoint.load import LoadReport
from indexshare.checkpoint.names import checkpoint_tensors
from indexshare.checkpoint.tensor_files import INDEX_FILE, SINGLE_FILE, read_header
from tests.unit.checkpoint.checkpoints import assert_same_weights, random_model, saved, tiny_config


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 50_000])
def test_round_trips_are_exact_and_byte_stable(tmp_path: Path, kind: str, shard_bytes: int) -> None:
    model = random_model().to(getattr(torch, kind))
    save_model(model, tmp_path / "a", max_shard_bytes=shard_bytes)
    loaded = load_model(tmp_path / "a")
    assert_same_weights(model, loaded)
    save_model(loaded, tmp_path / "b", max_shard_bytes=shard_bytes)
    save_model(loaded, tmp_path / "b", max_shard_bytes=shard_bytes)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert_same_weights(loaded, load_model(tmp_path / "b"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_the_safetensors_library_reads_the_same(tmp_path: Path) -> None:
    model = random_model().bfloat16()
    folder = saved(tmp_path / "m", model)
    tensors = load_file(folder / SINGLE_FILE)
    specs = checkpoint_tensors(model.config)
    assert tensors.keys() == specs.keys()
    state = model.state_dict()
    for name, spec in specs.items():
        part = state[spec.ours][spec.index] if spec.index else state[spec.ours]
        assert torch.equal(tensors[name], part), name
        assert tensors[name].dtype == (torch.float32 if spec.float32 else torch.bfloat16)
    with safe_open(folder / SINGLE_FILE, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    for stored in read_header(folder / SINGLE_FILE).values():
        assert stored.begin % stored.dtype.itemsize == 0


def test_index_of_a_sharded_checkpoint(tmp_path: Path) -> None:
    model = random_model()
    save_model(model, tmp_path / "m", max_shard_bytes=60_000)
    index = json.loads((tmp_path / "m" / INDEX_FILE).read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    total = 0
    for shard in shards:
        stored = read_header(tmp_path / "m" / shard)
        assert all(index["weight_map"][name] == shard for name in stored)
        size = sum(t.end - t.begin for t in stored.values())
        assert size <= 60_000 or len(stored) == 1
        total += size
    assert index["metadata"]["total_size"] == total == sum(t.nbytes for t in model.state_dict().values())


def test_fp8(tmp_path: Path) -> None:
    model, report = random_model().bfloat16(), LoadReport()
    save_model(model, tmp_path / "m", quantization="fp8")
    stored = read_header(tmp_path / "m" / SINGLE_FILE)
    scheme = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
    assert (scheme["quant_method"], scheme["fmt"], scheme["weight_block_size"]) == ("fp8", "e4m3", [128, 128])
    exact = ("layernorm", "norm.", "embed_tokens", "lm_head", "eh_proj", "weights_proj", "mlp.gate.")
    for name, tensor in stored.items():
        if name.endswith("_scale_inv"):
            continue
        precise = any(part in name for part in exact) or name.endswith("norm.weight")
        assert (tensor.dtype == torch.float8_e4m3fn) == (not precise), name
        assert (f"{name}_scale_inv" in stored) == (not precise)
        module = name.removesuffix(".weight").removesuffix(".bias")
        assert (module in scheme["modules_to_not_convert"]) == precise, name
    loaded = load_model(tmp_path / "m", report=report)
    assert loaded.config.quantization_config is None
    assert report.dequantized == sum(t.dtype == torch.float8_e4m3fn for t in stored.values())
    for name, tensor in model.state_dict().items():
        difference = (loaded.state_dict()[name].float() - tensor.float()).abs().max()
        assert difference <= tensor.float().abs().max() / 14, name
    # What is loaded is representable: saving it again changes nothing.
    save_model(loaded, tmp_path / "again", quantization="fp8", dtype="float32")
    first, second = (load_file(tmp_path / d / SINGLE_FILE) for d in ("m", "again"))
    assert all(torch.equal(first[n].float(), second[n].float()) for n in first if first[n].itemsize == 1)


def test_fp8_refuses_weights_that_are_not_finite(tmp_path: Path) -> None:
    model = random_model()
    with torch.no_grad():
        model.layers[1].mlp.experts.down_proj[2, 0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"experts\.2\.down_proj\.weight: .* NaN or an infinity"):
        save_model(model, tmp_path / "m", quantization="fp8")
    assert list(tmp_path.iterdir()) == []


def test_other_files_stay_and_stale_weights_go(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save_model(random_model(), folder, max_shard_bytes=60_000)
    (folder / "README.md").write_text("card")
    (folder / "model-notes.safetensors").write_text("not a shard")
    (folder / "logs").mkdir()
    (folder / "logs" / "x").write_text("log")
    model = random_model(seed=1)
    save_model(model, folder)
    names = sorted(p.name for p in folder.iterdir())
    kept = ["README.md", "logs", "model-notes.safetensors"]
    assert names == sorted([*kept, "config.json", "generation_config.json", SINGLE_FILE])
    assert_same_weights(model, load_model(folder))
    assert (folder / "logs" / "x").read_text() == "log"


def test_what_came_with_the_model_is_saved_with_it(tmp_path: Path) -> None:
    """Byte for byte, keys that nobody here knows included; another's tokenizer takes the place of all of its own."""
    files = {
        "tokenizer.json": b"{ }", "tokenizer_config.json": b"[]\n", "special_tokens_map.json": b"{}",
        "chat_template.jinja": "[gMASK]{{ x }}é".encode(), "tokenizer.model": b"\0\xff",
        "generation_config.json": b'{"eos_token_id": [3, 5], "temperature": 0.6, "unknown": {"a": null}}',
    }  # fmt: skip
    folder = saved(tmp_path / "m")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    model = load_model(folder)
    for target in (tmp_path / "n", folder):
        save_model(model, target)
        assert {name: content for name, content in contents(target).items() if name in files} == files
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_bytes(b"{}")
    save_model(model, folder, tokenizer_dir=other)
    kept = {"tokenizer.json": b"{}", "generation_config.json": files["generation_config.json"]}
    assert {name: content for name, content in contents(folder).items() if name in files} == kept


def test_ids_that_are_overridden_are_saved_so(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 5], "top_p": 0.9}')
    save_model(load_model(folder, config_overrides={"eos_token_id": (7,)}), tmp_path / "n")
    assert json.loads((tmp_path / "n" / "generation_config.json").read_text()) == {"eos_token_id": [7], "top_p": 0.9}
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"generation_config\.json holds a list"):
        load_model(folder, config_overrides={"eos_token_id": 7})


def test_tokenizer_files_come_along(tmp_path: Path) -> None:
    source = tmp_path / "t"
    source.mkdir()
    with pytest.raises(ValueError, match="no tokenizer files"):
        save_model(random_model(), tmp_path / "m", tokenizer_dir=source)
    (source / "tokenizer.json").write_text("{}")
    (source / "other.txt").write_text("x")
    save_model(random_model(), tmp_path / "m", tokenizer_dir=source)
    assert (tmp_path / "m" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "m" / "other.txt").exists()


def test_generation_config(tmp_path: Path) -> None:
    config = tiny_config(eos_token_id=(3, 5), pad_token_id=3, bos_token_id=None)
    saved(tmp_path / "m", random_model(config))
    data = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert (data["eos_token_id"], data["pad_token_id"], data["bos_token_id"]) == ([3, 5], 3, None)
    assert load_model(tmp_path / "m").config.eos_token_id == (3, 5)


def test_settings_are_checked(tmp_path: Path) -> None:
    model = random_model()
    with pytest.raises(ValueError, match="'int4'"):
        save_model(model, tmp_path / "m", quantization="int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_shard_bytes is 0"):
        save_model(model, tmp_path / "m", max_shard_bytes=0)
    with pytest.raises(ValueError, match="float64"):
        save_model(model.double(), tmp_path / "m")
    (tmp_path / "f").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        save_model(model.float(), tmp_path / "f")


class Interrupted:
    """Calls the original function until its turn comes, then raises."""

    def __init__(self, original: object, turn: int, error: BaseException) -> None:
        self.original, self.left, self.error = original, turn, error

    def __call__(self, *args: object, **kwargs: object) -> object:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.original(*args, **kwargs)  # type: ignore[operator]


FULL_DISK = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("turn", [0, 7, 100])
@pytest.mark.parametrize("existing", [True, False])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn: int, existing: bool) -> None:
    if existing:
        saved(tmp_path / "m", random_model(seed=5))
        (tmp_path / "m" / "README.md").write_text("card")
    before = contents(tmp_path)
    broken = Interrupted(tensor_files._write_values, turn, FULL_DISK)
    monkeypatch.setattr(tensor_files, "_write_values", broken)
    said = "the checkpoint that was there is unchanged" if existing else "nothing was written"
    with pytest.raises(OSError, match=f"the disk is full .* bytes needed.*{said}") as error:
        save_model(random_model(), tmp_path / "m", max_shard_bytes=60_000)
    assert error.value.errno == errno.ENOSPC
    assert contents(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["m"] if existing else [])


def test_too_little_space_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"bytes needed, 1,000 free; nothing was written"):
        save_model(random_model(), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("turn", range(0, 12, 2))
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "broken disk")])
def test_interrupted_while_files_are_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turn: int, error: BaseException
) -> None:
    """Four files leave and up to a dozen arrive; stopping anywhere in between undoes the moves."""
    saved(tmp_path / "m", random_model(seed=5))
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(save, "_move", Interrupted(save._move, turn, error))
        with pytest.raises(type(error)):
            save_model(random_model(), tmp_path / "m", max_shard_bytes=60_000)
    assert contents(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("turn", [0, 1, 3, 4, 5])
def test_killed_while_files_are_moved(tmp_path: Path, turn: int) -> None:
    """Three files leave, three arrive. The folder loads as one of the two, or says where the previous files are."""
    folder, model = saved(tmp_path / "m", random_model(seed=5)), random_model()
    before = contents(folder)
    child = os.fork()
    if child == 0:
        moves = [0]

        def move(source: Path, target: Path, moved: object) -> None:
            if moves[0] == turn:
                os._exit(9)
            moves[0] += 1
            source.rename(target)

        save._move = move
        save_model(model, folder)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    if turn:
        with pytest.raises(
            ValueError, match=r"a model was being saved there; .* lies in .*\.previous-\w+: move it back"
        ):
            load_model(folder)
        [previous] = folder.glob(".previous-*")
        for file in previous.iterdir():
            file.replace(folder / file.name)
    assert {name: content for name, content in contents(folder).items() if name in before} == before
    assert_same_weights(random_model(seed=5), load_model(folder))
    save_model(model, folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted(before), "what was left over is gone"
    assert_same_weights(model, load_model(folder))


def mount(*arguments: str) -> None:
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system needs privileges")


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A mount point in a folder that cannot be written, as in containers."""
    parent, folder = tmp_path / "parent", tmp_path / "parent" / "volume"
    parent.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(parent))
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder))
    mount("-o", "remount,ro", str(parent))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    subprocess.run(["umount", str(parent)], check=True)


def test_a_mount_point_in_a_closed_folder(volume: Path) -> None:
    for seed in (0, 1):
        save_model(random_model(seed=seed), volume)
        assert_same_weights(random_model(seed=seed), load_model(volume))
    assert sorted(p.name for p in volume.iterdir()) == ["config.json", "generation_config.json", SINGLE_FILE]
    with pytest.raises(OSError, match="Read-only file system"):
        save_model(random_model(), volume.parent / "other")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_really_full_disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(small_disk / "m", random_model(seed=5))
    before = contents(folder)
    size = sum(len(data) for data in before.values())
    assert size < 512 * 1024 < 2 * size  # one fits, a second beside it does not
    with pytest.raises(OSError, match="bytes needed"):
        save_model(random_model(), folder)
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**12))
    with pytest.raises(OSError, match="the disk is full"):
        save_model(random_model(), folder)
    assert contents(small_disk) == {f"m/{name}": data for name, data in before.items()}
    assert_same_weights(random_model(seed=5), load_model(folder))
