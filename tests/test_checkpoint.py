import io
import subprocess
import sys
import textwrap
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import bitlib
from bitlib import checkpoint, zoo
from bitlib.checkpoint import Architecture, CheckpointError
from bitlib.files import fetching
from tests.conftest import PEAK, SMALL, needs_proc, random_arrays

KERNEL = "resnet/block2/unit02/b/standardized_conv2d/kernel"
GAMMA = "resnet/block3/unit01/c/group_norm/gamma"


def write(path, arrays, members=()):
    """A `.npz` of arrays, and of further members given as name and bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, np.asanyarray(array))
            archive.writestr(f"{name}.npy", data.getvalue())
        for name, data in members:
            archive.writestr(name, data)
    return path


def refusal(path):
    """The message with which `read` and `load` refuse a file; they must agree, and name the file."""
    with pytest.raises(CheckpointError) as read:
        checkpoint.read(path)
    with pytest.raises(CheckpointError) as loaded:
        bitlib.load(path)
    assert str(read.value) == str(loaded.value)
    assert str(read.value).startswith(f"{path}: ")
    return str(read.value)


class TestRead:
    def test_arrays_in_network_order(self, tmp_path, small_arrays):
        shuffled = dict(sorted(small_arrays.items(), key=lambda item: hash(item[0])))
        arrays = checkpoint.read(write(tmp_path / "x.npz", shuffled))
        assert list(arrays) == list(checkpoint.layout(SMALL))
        assert all(np.array_equal(arrays[name], small_arrays[name]) for name in arrays)

    def test_compressed_and_big_endian_and_fortran(self, tmp_path, small_arrays):
        odd = {n: np.asfortranarray(a.astype(">f4")) for n, a in small_arrays.items()}
        np.savez_compressed(tmp_path / "x.npz", **odd)
        arrays = checkpoint.read(tmp_path / "x.npz")
        assert all(
            np.array_equal(arrays[n], small_arrays[n]) and arrays[n].dtype == "float32" for n in arrays
        )

    def test_numbered_names_are_normalised(self, tmp_path, small_arrays):
        numbered = {}
        for number, (name, array) in enumerate(small_arrays.items()):
            numbered[name.replace("standardized_conv2d", f"standardized_conv2d_{number}")] = array
        assert "resnet/root_block/standardized_conv2d_0/kernel" in numbered
        arrays = checkpoint.read(write(tmp_path / "x.npz", numbered))
        assert all(np.array_equal(arrays[name], small_arrays[name]) for name in small_arrays)

    @pytest.mark.parametrize(
        "architecture",
        [SMALL, Architecture((1, 1, 1, 1), 2, 21843), Architecture((3, 4, 23, 3), 0.5, 1)],
        ids=str,
    )
    def test_depth_width_and_head_are_inferred(self, architecture):
        assert checkpoint.infer(checkpoint.layout(architecture)) == architecture

    def test_asking_for_a_name_reads_no_array(self, small_npz, monkeypatch):
        with checkpoint.opened(small_npz) as archive:
            monkeypatch.setattr(np.lib.format, "read_array", None)
            assert KERNEL in archive
            assert "optimizer/step" not in archive

    def test_shapes_reads_no_data(self, small_npz):
        assert checkpoint.shapes(small_npz) == checkpoint.layout(SMALL)


class TestRefusals:
    @pytest.mark.parametrize("name", [KERNEL, GAMMA, checkpoint.ROOT, *checkpoint.HEAD])
    def test_missing(self, tmp_path, small_arrays, name):
        message = refusal(write(tmp_path / "x.npz", {n: a for n, a in small_arrays.items() if n != name}))
        assert f"{name}: missing, expected shape {small_arrays[name].shape}" in message

    @pytest.mark.parametrize("name", ["resnet/block2/unit01/d/group_norm/gamma", "optimizer/step"])
    def test_unexpected(self, tmp_path, small_arrays, name):
        message = refusal(write(tmp_path / "x.npz", small_arrays | {name: np.zeros(3, "float32")}))
        assert f"{name}: unexpected" in message

    def test_member_that_is_no_array(self, tmp_path, small_arrays):
        message = refusal(write(tmp_path / "x.npz", small_arrays, [("README.txt", b"hello")]))
        assert "README.txt: unexpected" in message

    def test_duplicate_member(self, tmp_path, small_arrays):
        data = io.BytesIO()
        np.lib.format.write_array(data, small_arrays[GAMMA])
        with pytest.warns(UserWarning, match="Duplicate name"):
            path = write(tmp_path / "x.npz", small_arrays, [(f"{GAMMA}.npy", data.getvalue())])
        assert f"{GAMMA}: duplicate" in refusal(path)

    def test_duplicate_once_numbers_are_dropped(self, tmp_path, small_arrays):
        twin = KERNEL.replace("conv2d/", "conv2d_9/")
        message = refusal(write(tmp_path / "x.npz", small_arrays | {twin: small_arrays[KERNEL]}))
        assert f"{KERNEL}: duplicate" in message
        assert "standardized_conv2d_9" in message

    @pytest.mark.parametrize("name", [KERNEL, GAMMA, checkpoint.ROOT, *checkpoint.HEAD])
    def test_wrong_shape(self, tmp_path, small_arrays, name):
        wrong = np.concatenate([small_arrays[name]] * 2, axis=-1)
        if name == checkpoint.HEAD[0]:
            wrong = wrong[0]
        message = refusal(write(tmp_path / "x.npz", small_arrays | {name: wrong}))
        assert "expected shape" in message
        assert name in message or name in checkpoint.HEAD

    def test_wrong_rank(self, tmp_path, small_arrays):
        message = refusal(write(tmp_path / "x.npz", small_arrays | {GAMMA: np.float32(1)}))
        assert f"{GAMMA}: expected shape (128,), found ()" in message

    @pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "complex64", "bool", "S4", "<M8[s]"])
    def test_wrong_dtype(self, tmp_path, small_arrays, dtype):
        message = refusal(write(tmp_path / "x.npz", small_arrays | {KERNEL: np.zeros((3, 3, 64, 64), dtype)}))
        assert f"{KERNEL}: expected dtype float32, found" in message

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("name", [KERNEL, "resnet/head/conv2d/bias"])
    def test_not_finite(self, tmp_path, small_arrays, name, value):
        spoilt = small_arrays[name].copy()
        spoilt.flat[5] = value
        message = refusal(write(tmp_path / "x.npz", small_arrays | {name: spoilt}))
        assert f"{name}: 1 of {spoilt.size} values are NaN or infinite" in message

    def test_pickled(self, tmp_path, small_arrays):
        class Bomb:
            def __reduce__(self):
                return (exec, ("raise SystemExit('unpickled')",))

        np.savez(tmp_path / "x.npz", **(small_arrays | {GAMMA: np.array([Bomb()], dtype=object)}))
        assert f"{GAMMA}: expected dtype float32, found object (a pickled array" in refusal(
            tmp_path / "x.npz"
        )

    def test_empty_file(self, tmp_path):
        (tmp_path / "x.npz").touch()
        assert "empty file" in refusal(tmp_path / "x.npz")

    def test_empty_archive(self, tmp_path):
        assert "empty" in refusal(write(tmp_path / "x.npz", {}))

    @pytest.mark.parametrize(
        "start", [b"<!DOCTYPE html><html>sign in</html>", b"\x93NUMPY\x01\x00", b"\x00" * 100]
    )
    def test_not_a_zip(self, tmp_path, start):
        (tmp_path / "x.npz").write_bytes(start)
        assert "not a .npz (zip) file" in refusal(tmp_path / "x.npz")

    @pytest.mark.parametrize("kept", [3, 0.1, 0.5, 0.99])
    def test_truncated(self, small_npz, kept):
        data = small_npz.read_bytes()
        small_npz.write_bytes(data[: kept if kept > 1 else int(len(data) * kept)])
        assert "truncated or corrupt zip" in refusal(small_npz)

    @pytest.mark.parametrize("savez", [np.savez, np.savez_compressed])
    def test_flipped_byte_is_found_and_named(self, tmp_path, small_arrays, savez):
        path = tmp_path / "x.npz"
        savez(path, **small_arrays)
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{KERNEL}.npy")
        data = bytearray(path.read_bytes())
        data[member.header_offset + 1000 + member.compress_size // 2] ^= 0x40
        path.write_bytes(data)
        assert f"{KERNEL}: corrupt" in refusal(path)

    def test_header_that_lies_about_its_size(self, tmp_path, small_arrays):
        data = io.BytesIO()
        np.lib.format.write_array(data, small_arrays[GAMMA])
        arrays = {name: array for name, array in small_arrays.items() if name != GAMMA}
        path = write(tmp_path / "x.npz", arrays, [(f"{GAMMA}.npy", data.getvalue()[:-8])])
        assert f"{GAMMA}: (128,) float32 takes 512 bytes, found 504" in refusal(path)

    def test_garbage_in_place_of_an_array(self, tmp_path, small_arrays):
        arrays = {name: array for name, array in small_arrays.items() if name != GAMMA}
        path = write(tmp_path / "x.npz", arrays, [(f"{GAMMA}.npy", b"garbage")])
        assert f"{GAMMA}: corrupt or truncated" in refusal(path)

    def test_many_problems_are_counted(self, tmp_path, small_arrays):
        gammas = {name: array for name, array in small_arrays.items() if not name.endswith("gamma")}
        assert "more" in refusal(write(tmp_path / "x.npz", gammas))

    def test_a_folder(self, tmp_path):
        assert "a folder" in refusal(tmp_path)

    def test_no_such_file(self, tmp_path):
        for function in (checkpoint.read, bitlib.load):
            with pytest.raises(FileNotFoundError, match=r"nothing\.npz: no such file"):
                function(tmp_path / "nothing.npz")

    def test_it_is_a_value_error(self):
        assert issubclass(CheckpointError, ValueError)
        assert bitlib.CheckpointError is CheckpointError


class TestLoad:
    def test_head_keep_none_and_new(self, small_npz, small_arrays, images):
        kept, features, new = (bitlib.load(small_npz, head=head) for head in ("keep", None, 4))
        assert kept(images).shape == (2, 11)
        assert features(images).shape == (2, 1024)
        assert new(images).shape == (2, 4)
        assert not np.any(new(images))
        np.testing.assert_array_equal(new.stages(images)["features"], features(images))
        kernel = small_arrays["resnet/head/conv2d/kernel"][0, 0]
        np.testing.assert_allclose(
            kept(images), features(images) @ kernel + small_arrays[checkpoint.HEAD[1]], atol=1e-4
        )

    @pytest.mark.parametrize("head", ["drop", 0, -3, 1.5, True])
    def test_wrong_head(self, small_npz, head):
        with pytest.raises(ValueError, match="^head: expected"):
            bitlib.load(small_npz, head=head)

    def test_headless_file(self, tmp_path, small_arrays, images):
        arrays = {name: array for name, array in small_arrays.items() if "/head/" not in name}
        path = write(tmp_path / "x.npz", arrays)
        assert bitlib.load(path, head=None)(images).shape == (2, 1024)
        with pytest.raises(CheckpointError, match=r"head/conv2d/kernel: missing.*head=None"):
            bitlib.load(path)

    def test_names_in_any_case(self):
        assert checkpoint.resolve("bit-xs-r14x0.5") == checkpoint.fetch("BiT-XS-R14x0.5")
        with pytest.raises(ValueError, match="nearest: .*BiT-M-R50x1"):
            bitlib.load("BiT-M-R50x7")

    def test_dtype_policy(self, small_npz, images):
        assert bitlib.load(small_npz, dtype="mixed_bfloat16").stages(images)["root"].dtype == "bfloat16"

    @pytest.mark.parametrize("spoil", ["missing", "shape", "nan", "unexpected"])
    def test_a_failed_assignment_leaves_the_model_untouched(self, small_npz, small_arrays, spoil):
        model = bitlib.load(small_npz)
        before = [variable.numpy().copy() for variable in model.variables]
        arrays = {name: array + np.float32(1) for name, array in small_arrays.items()}
        last = list(arrays)[-1]
        if spoil == "missing":
            del arrays[last]
        elif spoil == "shape":
            arrays[last] = arrays[last][:-1]
        elif spoil == "nan":
            arrays[last] = arrays[last] * np.float32(np.nan)
        else:
            arrays["more"] = arrays[last]
        with pytest.raises(CheckpointError):
            checkpoint.assign(model, arrays)
        assert all(np.array_equal(a, v) for a, v in zip(before, model.variables, strict=True))

    @pytest.mark.slow
    @needs_proc
    def test_memory_stays_near_one_copy(self, tmp_path):
        """Of the arrays of an R50x1, loading may hold one model and little more."""
        np.savez(tmp_path / "x.npz", **random_arrays(Architecture(zoo.UNITS[50], 1, 1000)))
        code = f"""
            import keras, bitlib
            bitlib.load("BiT-XS-R14x0.5")
            before = peak()
            model = bitlib.load({str(tmp_path / "x.npz")!r})
            print((peak() - before) * 2**20 / (4 * model.count_params()))
        """
        run = subprocess.run(
            [sys.executable, "-c", PEAK + textwrap.dedent(code)], capture_output=True, text=True, check=True
        )
        assert 0.9 < float(run.stdout) < 1.6


class TestSave:
    def test_round_trip_bit_for_bit(self, tmp_path, small_npz, small_arrays):
        model = bitlib.load(small_npz)
        first = checkpoint.save(model, tmp_path / "first.npz")
        again = checkpoint.read(first)
        assert list(again) == list(checkpoint.layout(SMALL))
        assert all(again[name].tobytes() == small_arrays[name].tobytes() for name in small_arrays)
        second = checkpoint.save(bitlib.load(first), tmp_path / "second.npz")
        assert first.read_bytes() == second.read_bytes()

    def test_numpy_alone_reads_it(self, tmp_path, small_npz):
        path = checkpoint.save(bitlib.load(small_npz), tmp_path / "plain.npz")
        with np.load(path) as file:
            assert set(file.files) == set(checkpoint.layout(SMALL))

    def test_headless(self, tmp_path, small_npz, images):
        model = bitlib.load(small_npz, head=None)
        again = bitlib.load(checkpoint.save(model, tmp_path / "x.npz"), head=None)
        np.testing.assert_array_equal(again(images), model(images))

    def test_interrupted_writing_leaves_the_old_file(self, small_npz, monkeypatch):
        model, before = bitlib.load(small_npz), small_npz.read_bytes()

        def interrupted(file, **arrays):
            file.write(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(model, small_npz)
        assert small_npz.read_bytes() == before
        assert list(small_npz.parent.iterdir()) == [small_npz]

    def test_a_folder_is_never_replaced(self, tmp_path, small_npz):
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "thesis").touch()
        with pytest.raises(IsADirectoryError, match=r"^path: .*models is a folder, expected a file"):
            checkpoint.save(bitlib.load(small_npz), tmp_path / "models")
        assert (tmp_path / "models" / "thesis").exists()

    def test_no_such_folder(self, tmp_path, small_npz):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            checkpoint.save(bitlib.load(small_npz), tmp_path / "nowhere" / "x.npz")


class TestFetch:
    @pytest.fixture
    def server(self, tmp_path, monkeypatch):
        """The published layout on loopback; yields the folder it serves."""
        folder = tmp_path / "published"
        (folder / "distill").mkdir(parents=True)
        handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
        monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *arguments: None)
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
            threading.Thread(target=http.serve_forever, daemon=True).start()
            monkeypatch.setenv("BITLIB_MIRROR", f"http://127.0.0.1:{http.server_port}/")
            monkeypatch.setenv("BITLIB_CACHE", str(tmp_path / "cache"))
            yield folder
            http.shutdown()

    def test_download_once_then_from_the_cache(self, server, small_npz, images):
        published = server / "distill" / "R50x1_224.npz"
        published.write_bytes(small_npz.read_bytes())
        path = checkpoint.fetch("R50x1_224")
        assert path.read_bytes() == small_npz.read_bytes()
        published.unlink()
        assert checkpoint.fetch("R50x1_224") == path
        np.testing.assert_array_equal(bitlib.load("R50x1_224")(images), bitlib.load(small_npz)(images))

    def test_not_found_says_what_to_do_and_leaves_nothing(self, server, tmp_path):
        with pytest.raises(ConnectionError, match=r"404.*BITLIB_MIRROR"):
            checkpoint.fetch("R50x1_160")
        assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]

    @pytest.mark.slow
    def test_no_server(self, monkeypatch, tmp_path):
        monkeypatch.setattr(fetching, "PAUSE", 0.01)
        monkeypatch.setenv("BITLIB_MIRROR", "http://127.0.0.1:9/")
        monkeypatch.setenv("BITLIB_CACHE", str(tmp_path / "cache"))
        with pytest.raises(ConnectionError, match="cannot be downloaded"):
            checkpoint.fetch("R50x1_160")

    def test_a_folder_as_mirror_filled_by_prefetch(self, tmp_path, monkeypatch):
        monkeypatch.setenv("BITLIB_CACHE", str(tmp_path / "cache"))
        (copy,) = checkpoint.prefetch(["BiT-XS-R14x0.5"], tmp_path / "mirror")
        assert copy.read_bytes() == checkpoint.fetch("BiT-XS-R14x0.5").read_bytes()
        (tmp_path / "mirror" / "BiT-S-R50x1.npz").write_bytes(copy.read_bytes())
        monkeypatch.setenv("BITLIB_MIRROR", str(tmp_path / "mirror"))
        assert checkpoint.fetch("BiT-S-R50x1") == tmp_path / "mirror" / "BiT-S-R50x1.npz"
        with pytest.raises(ConnectionError, match="not in BITLIB_MIRROR"):
            checkpoint.fetch("BiT-S-R50x3")
