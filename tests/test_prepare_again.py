"""Prepared folders meet other options, other data, edited lists, parts that are away, and other processes."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import run, tree, write_camvid
from fixtures.folder import write_folder
from fixtures.nyud import write_nyud
from fixtures.pictures import write_photo
from fixtures.sbd import write_sbd
from fixtures.sift_flow import write_sift_flow
from fixtures.voc import write_voc

from kerasseg.cli import prepare_data
from kerasseg.data import DATA_SETS, open_data
from kerasseg.data.preparation import claim, conversion, preparing
from kerasseg.data.preparation.prepared import Prepared
from kerasseg.data.preparation.preparing import prepare
from kerasseg.errors import KerassegError


def assert_same(received, expected) -> None:
    assert received.ids == expected.ids and (received.labels, received.heads) == (expected.labels, expected.heads)
    for one, other in zip(received, expected, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.label, other.label)


@pytest.mark.parametrize("name, write", [("sift_flow", write_sift_flow), ("nyud", write_nyud), ("camvid", write_camvid)])
def test_however_the_folder_is_named(name, write, tmp_path, monkeypatch):
    """Converted masks hold plain labels: taken for those of the source, each would be another class."""
    write(tmp_path / "data")
    prepare(name, tmp_path / "data", tmp_path / "out")
    prepare(name, tmp_path / "data")
    (tmp_path / "x" / "y").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "x" / "y")
    split = DATA_SETS[name].splits[-1] if name != "camvid" else "val"
    expected = DATA_SETS[name](tmp_path / "data", split)
    monkeypatch.chdir(tmp_path / "x")
    places = [tmp_path / "x" / ".." / "out", tmp_path / "x" / ".." / "data", tmp_path / "link" / ".." / ".." / "out", "../out"]
    for place in (*places, tmp_path / "out" / "original" / ".."):
        opened = open_data(name, place, split)
        assert opened.prepared is not None, place
        assert_same(opened, expected)


def test_what_others_keep_in_a_folder_that_is_named_stays(tmp_path):
    write_camvid(tmp_path / "camvid")
    one, other = write_folder(tmp_path / "one", 6), write_folder(tmp_path / "other", 9)
    prepare("folder", one, tmp_path / "out")
    before = tree(tmp_path / "out")
    for name, source in (("camvid", tmp_path / "camvid"), ("folder", other)):
        with pytest.raises(KerassegError, match="out holds data set 'folder' prepared with no options, .*by --out, or remove it"):
            prepare(name, source, tmp_path / "out")
        assert tree(tmp_path / "out") == before
    assert_same(open_data("folder", tmp_path / "out"), DATA_SETS["folder"](one))
    (one / "classes.txt").write_text("ground\ncat\nfox\n")
    with pytest.raises(KerassegError, match="of other examples or classes"):
        prepare("folder", one, tmp_path / "out")
    # Of the same data set another split is welcome.
    (one / "classes.txt").write_text("ground\ncat\ndog\n")
    (one / "more.txt").write_text("a0\na1\n")
    assert set(prepare("folder", one, tmp_path / "out").header["splits"]) == {"train", "val", "more"}


@pytest.mark.parametrize("before", ["prepared.json", "examples.jsonl", "converted"])
def test_beside_its_source_it_is_made_anew_also_after_a_kill(before, tmp_path, monkeypatch):
    root = write_camvid(tmp_path / "data")
    folder = prepare("camvid", root).folder
    unlink, remove = Path.unlink, shutil.rmtree
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path, **rest: _killed() if path.name == before else unlink(path, **rest))
        patch.setattr(shutil, "rmtree", lambda path, **rest: _killed() if path.name == before else remove(path, **rest))
        with pytest.raises(KeyboardInterrupt):
            prepare("camvid", root, splits=["val"], options={"class_order": "dilation"})
    assert (folder / "prepared.json").exists() == (before == "prepared.json")
    # What it finds there is of the other order, though it is noted to be of this one.
    again = prepare("camvid", root, splits=["val"], options={"class_order": "dilation"})
    assert sorted(path.name for path in folder.iterdir() if path.suffix) == [
        "checksums.txt", "examples.jsonl", "prepared.json", "val.txt"
    ]  # fmt: skip
    fresh = prepare("camvid", root, tmp_path / "fresh", splits=["val"], options={"class_order": "dilation"})
    assert again.done == fresh.done == 4 and again.header["splits"]["val"]["heads"] == fresh.header["splits"]["val"]["heads"]
    expected = DATA_SETS["camvid"](root, "val", class_order="dilation")
    assert_same(open_data("camvid", root, "val", class_order="dilation"), expected)


def _killed(*arguments, **options):
    raise KeyboardInterrupt


def test_a_part_that_is_away_today_stays_prepared(tmp_path, capsys):
    """SBD on a disk of its own, which is not mounted when the command runs again."""
    write_voc(tmp_path / "data" / "VOCdevkit")
    write_sbd(tmp_path / "data")
    expected = DATA_SETS["voc"](tmp_path / "data", "sbd_train")
    expected = [(one.id, one.image, one.label) for one in expected]
    prepare("voc", tmp_path / "data", tmp_path / "out", splits=["sbd_train", "val"])
    before = tree(tmp_path / "out")
    (sbd,) = {path.parent.parent for path in (tmp_path / "data").rglob("cls")}
    shutil.move(sbd, tmp_path / "away")
    for splits in ("val", "train"):
        assert run(prepare_data, "voc", tmp_path / "data", "--out", tmp_path / "out", "--splits", splits) == 0
        out = capsys.readouterr().out
        assert out.count("kept as it was: sbd_train (") == 1 and "no longer there" not in out
        if splits == "val":
            assert tree(tmp_path / "out") == before
    assert set(Prepared(tmp_path / "out").splits) == {"sbd_train", "val", "train"}
    received = open_data("voc", tmp_path / "out", "sbd_train")
    for one, (name, image, label) in zip(received, expected, strict=True):
        assert one.id == name
        np.testing.assert_array_equal(one.image, image)
        np.testing.assert_array_equal(one.label, label)
    # It is back.
    shutil.move(tmp_path / "away", sbd)
    again = prepare("voc", tmp_path / "data", tmp_path / "out", splits=["val"])
    assert (again.done, again.kept, again.gone) == (0, {}, [])


def test_what_it_shares_with_others_is_kept_up_to_date(tmp_path):
    root = write_folder(tmp_path / "data")
    (root / "val.txt").write_text("a0\nb2\n")
    prepare("folder", root)
    # One whose image is missing cannot be opened.
    (root / "val.txt").write_text("a0\nb2\nnowhere\n")
    expected = write_photo(root / "images" / "a0.jpg", (70, 80), 99)
    assert list(prepare("folder", root).kept) == ["val"]
    np.testing.assert_allclose(open_data("folder", root, "val")[0].image, expected, atol=2)


def test_a_list_that_was_taken_away_is_no_split(tmp_path):
    root = write_folder(tmp_path / "data")
    (root / "more.txt").write_text("a0\na1\n")
    assert "more" in prepare("folder", root).header["splits"]
    (root / "more.txt").unlink()
    outcome = prepare("folder", root)
    assert list(outcome.header["splits"]) == ["train", "val"] and not outcome.kept
    assert not (outcome.folder / "more.txt").exists()


def _swap_lines(root):
    lines = (root / "train.txt").read_text().split()
    (root / "train.txt").write_text("\n".join(reversed(lines)))


def _other_mask(root):
    # Same names, another file.
    (root / "train.txt").write_text("a0 masks/a1.png\na1\na3\na4\n".replace("a0 ", "images/a0.jpg "))


def _other_class(root):
    (root / "classes.txt").write_text("ground\ncat\nfox\n")


def _fewer(root):
    (root / "train.txt").write_text("a0\na1\na3\n")


@pytest.mark.parametrize("edit", [_swap_lines, _other_mask, _other_class, _fewer])
def test_edited_lists_are_read(edit, tmp_path):
    root = write_folder(tmp_path / "data")
    prepare("folder", root)
    assert open_data("folder", root).prepared is not None
    edit(root)
    opened = open_data("folder", root)
    assert opened.prepared is None
    assert_same(opened, DATA_SETS["folder"](root))
    prepare("folder", root)
    assert open_data("folder", root).prepared is not None
    assert_same(open_data("folder", root), DATA_SETS["folder"](root))


def test_only_lists_that_can_be_read_hide_what_was_prepared(tmp_path, monkeypatch):
    root = write_camvid(tmp_path / "camvid")
    (root / "images" / "val" / "val_00001.png").write_bytes(b"")
    prepare("camvid", root, skip_broken=True)
    # One that is left out is listed all the same.
    assert len(open_data("camvid", root, "val")) == 3
    (root / "images" / "train" / "train_00005.png").unlink()
    (root / "masks" / "train" / "train_00005.png").unlink()
    assert open_data("camvid", root, "train").prepared is None and open_data("camvid", root, "val").prepared is not None
    # Nobody looks at those that are slow to open.
    with monkeypatch.context() as patch:
        patch.setattr(DATA_SETS["camvid"], "slow_to_open", True)
        assert open_data("camvid", root, "train").prepared is not None
    shutil.rmtree(root / "masks")
    assert open_data("camvid", root, "train").prepared is not None


def test_one_run_at_a_time(tmp_path, capsys):
    root = write_folder(tmp_path / "data")
    folder = prepare("folder", root).folder
    before = tree(root)
    with (folder / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert run(prepare_data, "folder", root) == 2
    assert f"error: another prepare_data is at work in {folder}: wait for it" in capsys.readouterr().err
    assert tree(root) == before
    assert run(prepare_data, "folder", root) == 0


def test_without_locks_it_works_all_the_same(tmp_path, monkeypatch):
    def refused(*arguments):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(claim.fcntl, "flock", refused)
    assert prepare("folder", write_folder(tmp_path / "data")).done == 6


def test_a_full_disk_names_what_it_did_not_take(tmp_path, monkeypatch, capsys):
    root = write_folder(tmp_path / "data")

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(arguments[0]))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        assert run(prepare_data, "folder", root, "--out", tmp_path / "out", "--jobs", 1) != 0
    err = capsys.readouterr().err
    assert f"{tmp_path}/out/original/image/a0.jpg" in err and str(root) not in err, err
    # A link to what is there already leaves nothing behind.
    assert prepare("folder", root, tmp_path / "out").done == 6
    os.utime(root / "images" / "a0.jpg")
    assert prepare("folder", root, tmp_path / "out").done == 1
    assert not list((tmp_path / "out").rglob(".unfinished*"))


def test_without_links_files_are_copied(tmp_path, monkeypatch):
    def refused(*arguments, **options):
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", refused)
    root = write_folder(tmp_path / "data")
    prepare("folder", root, tmp_path / "out")
    copied = tmp_path / "out" / "original" / "image" / "a0.jpg"
    assert copied.read_bytes() == (root / "images" / "a0.jpg").read_bytes() and copied.stat().st_nlink == 1
    assert_same(open_data("folder", tmp_path / "out"), DATA_SETS["folder"](root))


def test_a_file_that_vanishes_meanwhile_is_a_broken_one(tmp_path, monkeypatch):
    root, whole = write_folder(tmp_path / "data"), conversion.survey_example

    def vanishing(data, example):
        if example.id == "a1":
            Path(example.path).unlink()
        return whole(data, example)

    monkeypatch.setattr(conversion, "survey_example", vanishing)
    outcome = prepare("folder", root, tmp_path / "out", skip_broken=True)
    assert [row["id"] for row in outcome.broken] == ["a1"] and "a1.jpg (No such file" in outcome.broken[0]["error"]


def test_every_head_is_prepared_whichever_was_asked_for(tmp_path):
    write_sift_flow(tmp_path / "data")
    prepare("sift_flow", tmp_path / "data", tmp_path / "out", options={"head": "geometric"})
    for options in ({}, {"head": "geometric"}, {"head": "semantic"}):
        opened = open_data("sift_flow", tmp_path / "out", "test", **options)
        assert_same(opened, DATA_SETS["sift_flow"](tmp_path / "data", "test", **options))
    # Asked for otherwise, it is the same.
    assert prepare("sift_flow", tmp_path / "data", tmp_path / "out").done == 0


def test_nothing_is_kept_within_the_source(tmp_path):
    root = write_folder(tmp_path / "data")
    (tmp_path / "link").symlink_to(root)
    before = tree(root)
    for out in (root / "out", root / "images" / "train", tmp_path / "link" / "masks" / "x"):
        with pytest.raises(KerassegError, match="lies inside .*data, which would hold itself"):
            prepare("folder", root, out)
    assert tree(root) == before
    assert prepare("folder", root, root / "kerasseg-folder").done == 6


def test_what_a_kill_left_is_swept_away_though_the_folder_was_whole_before(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "data")
    folder = prepare("folder", root).folder
    os.utime(root / "images" / "a0.jpg")
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "convert_all", _killed)
        with pytest.raises(KeyboardInterrupt):
            prepare("folder", root)
    (folder / "deep").mkdir()
    (folder / "deep" / ".unfinished-999999999-x.png").write_bytes(b"half")
    assert prepare("folder", root).done == 1
    assert not list(folder.rglob(".unfinished*")) and not (folder / "unfinished.json").exists()


def test_of_many_splits_shares_are_printed_alone(tmp_path, capsys):
    root = write_folder(tmp_path / "data")
    assert run(prepare_data, "folder", root) == 0
    assert "train, pixels       %  val, pixels" in capsys.readouterr().out
    for split in ("one", "two"):
        (root / f"{split}.txt").write_text("a0\na1\n")
    assert run(prepare_data, "folder", root) == 0
    out = capsys.readouterr().out
    assert "train, %  val, %  one, %  two, %  weight, train" in out and "train, pixels" not in out
    # The whole reason is for those who open it.
    (root / "val.txt").write_text("")
    assert run(prepare_data, "folder", root) == 0
    assert f"kept as it was: val (split 'val' of {root} is empty)" in capsys.readouterr().out.splitlines()
