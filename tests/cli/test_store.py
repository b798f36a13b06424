"""`pyfeat store`: exit codes, JSON, and what a person reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyfeat import FeatureStore, Space
from pyfeat.store import Item, read_items, write_items

from .conftest import Run, json_of

N = 4
SPACE = Space(3, parts={"name": "mine", "layer": "pool", "precision": "float32"})
OTHER = Space(3, "float16", {"name": "other"})


def rows(n: int = N) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.arange(3 * n, dtype=np.float32).reshape(n, 3)


def keys(n: int = N) -> list[bytes]:
    return [bytes([17 * i] * 16) for i in range(n)]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    root = tmp_path / "feats"
    for half in (slice(0, 2), slice(2, N)):
        with FeatureStore(root, SPACE) as opened:
            opened.put(keys()[half], rows()[half])
        names = [f"/photos/{i % 2}/{i}.png" for i in range(N)][half]
        write_items(root, SPACE, [Item(n, k) for n, k in zip(names, keys()[half], strict=True)])
    write_items(root, SPACE, [Item("/photos/bad.png", None, "is cut off")])
    with FeatureStore(root, OTHER) as opened:
        opened.put(keys(1), rows(1))
    return root


def segments(store: Path) -> list[Path]:
    return sorted(store.glob(f"spaces/{SPACE.fingerprint[:32]}/*.safetensors"))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_info_tells_each_space(store: Path, run: Run) -> None:
    found = {s["space"]: s for s in json_of(run("store", "info", store, "--json"))["spaces"]}
    mine = found[SPACE.fingerprint]
    assert (mine["rows"], mine["images"], mine["segments"], mine["tails"]) == (N, N, 2, 0)
    assert (mine["layer"], mine["precision"], mine["dtype"]) == ("pool", "float32", "float32")
    assert mine["quarantined"] == [{"path": "/photos/bad.png", "reason": "is cut off"}]
    assert found[OTHER.fingerprint]["rows"] == 1


def test_info_is_a_table(store: Path, run: Run) -> None:
    header, *lines = run("store", "info", store).stdout.splitlines()
    assert header.split()[:4] == ["space", "backbone", "layer", "precision"]
    assert {line.split()[1] for line in lines} == {"mine", "other"}


def test_quarantine_lists_path_and_reason(store: Path, run: Run) -> None:
    result = run("store", "quarantine", store)
    assert (result.exit_code, result.stdout) == (0, "/photos/bad.png: is cut off\n")
    (bad,) = json_of(run("store", "quarantine", store, "--json"))["quarantined"]
    assert bad == {
        "space": SPACE.fingerprint,
        "path": "/photos/bad.png",
        "reason": "is cut off",
    }


def test_quarantine_of_one_space(store: Path, run: Run) -> None:
    result = run("store", "quarantine", store, "--space", OTHER.fingerprint[:8], "--json")
    assert json_of(result)["quarantined"] == []


def test_verify_of_a_damaged_store_is_1_and_repair_makes_it_0(store: Path, run: Run) -> None:
    damage(segments(store)[0])
    assert run("store", "verify", store).exit_code == 1
    result = run("store", "verify", store, "--repair")
    assert result.exit_code == 0
    assert f"key {keys()[1].hex()} (/photos/1/1.png)" in result.stdout
    assert result.stdout.splitlines()[-1] == "clean"
    assert run("store", "verify", store).exit_code == 0


def test_repair_as_json_names_what_is_lost(store: Path, run: Run) -> None:
    victim = segments(store)[0]
    damage(victim)
    done = json_of(run("store", "verify", store, "--repair", "--json"))
    assert done["damage"] == []
    (loss,) = done["repair"]["lost"]
    assert (loss["path"], loss["names"]) == (str(victim), ["/photos/1/1.png"])
    assert done["repair"]["aside"] == [f"{victim}.damaged"]


def test_compact_says_what_it_did(store: Path, run: Run) -> None:
    done = json_of(run("store", "compact", store, "--json"))["spaces"]
    assert {s["space"]: s["segments"] for s in done} == {
        SPACE.fingerprint: [2, 1],
        OTHER.fingerprint: [1, 1],
    }
    assert "1 -> 1 segments" in run("store", "compact", store).stdout


def test_compact_of_one_space(store: Path, run: Run) -> None:
    run("store", "compact", store, "--space", OTHER.fingerprint[:8])
    assert len(segments(store)) == 2


@pytest.mark.parametrize("keep", [(), ("--keep", "zz")])
def test_gc_without_a_space_to_keep_is_wrong_usage(
    store: Path, run: Run, keep: tuple[str, ...]
) -> None:
    assert run("store", "gc", store, *keep).exit_code == 2
    assert len(FeatureStore.spaces(store)) == 2


def test_gc_all_with_keep_is_wrong_usage(store: Path, run: Run) -> None:
    assert run("store", "gc", store, "--all", "--keep", SPACE.fingerprint[:8]).exit_code == 2


def test_gc_says_the_bytes_freed(store: Path, run: Run) -> None:
    options = ("--keep", SPACE.fingerprint[:8], "--json")
    said = json_of(run("store", "gc", store, *options, "--dry-run"))
    done = json_of(run("store", "gc", store, *options))
    assert said["freed"] == done["freed"] > 0
    assert FeatureStore.spaces(store) == [SPACE]


def test_gc_takes_several_spaces_with_commas(store: Path, run: Run) -> None:
    both = f"{SPACE.fingerprint[:8]},{OTHER.fingerprint[:8]}"
    assert json_of(run("store", "gc", store, "--keep", both, "--json"))["freed"] == 0


def test_gc_all_removes_all(store: Path, run: Run) -> None:
    assert run("store", "gc", store, "--all").exit_code == 0
    assert FeatureStore.spaces(store) == []


def test_export_and_import_give_the_same_store(store: Path, tmp_path: Path, run: Run) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    space = ("--space", SPACE.fingerprint[:8])
    done = json_of(run("store", "export", store, "--out", out, *space, "--json"))
    assert (done["rows"], done["space"]) == (N, SPACE.fingerprint)
    assert json_of(run("store", "import", again, out, "--json"))["rows"] == N
    assert FeatureStore.spaces(again) == [SPACE]
    np.testing.assert_array_equal(FeatureStore(again, mode="r").get(keys()), rows())
    names = [i["images"] for i in json_of(run("store", "info", again, "--json"))["spaces"]]
    assert names == [N]


def test_export_where(store: Path, tmp_path: Path, run: Run) -> None:
    options = ("--out", tmp_path / "out", "--space", SPACE.fingerprint[:8], "--where", "*/1/*")
    assert json_of(run("store", "export", store, *options, "--json"))["rows"] == 2


@pytest.mark.parametrize("option", [("--format", "csv"), ("--space", "zz"), ("--dtype", "int3")])
def test_wrong_value_of_export_is_wrong_usage(
    store: Path, tmp_path: Path, run: Run, option: tuple[str, str]
) -> None:
    options = ("--out", tmp_path / "out", "--space", SPACE.fingerprint[:8], *option)
    assert run("store", "export", store, *options).exit_code == 2


def test_import_of_an_array_needs_a_name(tmp_path: Path, run: Run) -> None:
    np.save(tmp_path / "rows.npy", rows())
    np.save(tmp_path / "keys.npy", np.frombuffer(b"".join(keys()), np.uint8).reshape(N, 16))
    options = (tmp_path / "feats", tmp_path / "rows.npy", "--keys", tmp_path / "keys.npy")
    result = run("store", "import", *options)
    assert result.exit_code == 2
    assert "name must say what computed the rows" in result.stderr
    assert run("store", "import", *options, "--name", "mine", "--dtype", "int8").exit_code == 0
    (space,) = FeatureStore.spaces(tmp_path / "feats")
    assert (space.parts["name"], space.dtype) == ("mine", "int8")


def test_import_of_what_is_no_array_is_wrong_usage(tmp_path: Path, run: Run) -> None:
    (tmp_path / "rows.npy").write_text("no array")
    result = run("store", "import", tmp_path / "f", tmp_path / "rows.npy", "--name", "mine")
    assert result.exit_code == 2
    assert "must be a .npy file" in result.stderr


def test_import_of_an_archive_is_wrong_usage(tmp_path: Path, run: Run) -> None:
    np.savez(tmp_path / "rows.npz", rows=rows())
    result = run("store", "import", tmp_path / "f", tmp_path / "rows.npz", "--name", "mine")
    assert result.exit_code == 2
    assert "must be a .npy file" in result.stderr


def test_imported_names_end_with_their_line_only(tmp_path: Path, run: Run) -> None:
    np.save(tmp_path / "rows.npy", rows())
    np.save(tmp_path / "keys.npy", np.frombuffer(b"".join(keys()), np.uint8).reshape(N, 16))
    names = sorted(f"a\x85{i}\u2028.png" for i in range(N))
    (tmp_path / "names.txt").write_text("".join(f"{name}\n" for name in names), "utf-8")
    files = (tmp_path / "rows.npy", "--keys", tmp_path / "keys.npy", "--names")
    result = run("store", "import", tmp_path / "f", *files, tmp_path / "names.txt", "--name", "m")
    assert result.exit_code == 0
    (space,) = FeatureStore.spaces(tmp_path / "f")
    assert [item.name for item in read_items(tmp_path / "f", space)] == names


def test_recompute_of_good_rows_is_0_and_of_another_1(tmp_path: Path, run: Run, words: str) -> None:
    (tmp_path / "reviews.txt").write_text("good film\nbad film\n")
    root = tmp_path / "feats"
    run("extract", tmp_path / "reviews.txt", "--store", root, "--backbone", words)
    result = run("store", "verify", root, "--recompute", 10)
    assert result.exit_code == 0
    assert "2 rows and golden row computed again" in result.stdout
    with FeatureStore(root) as opened:
        opened.put(opened.keys()[:1], opened.get(opened.keys()[:1]) + 1)
    result = run("store", "verify", root, "--recompute", 10, "--json")
    assert result.exit_code == 1
    (again,) = json_of(result)["recomputed"]
    assert len(again["beyond"]) == 1


def test_recompute_without_a_backbone_by_name_says_so(store: Path, run: Run) -> None:
    result = run("store", "verify", store, "--recompute", 1)
    assert result.exit_code == 0
    assert result.stdout.count("cannot be computed again") == 2
