import base64
import re
import shutil
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from cli_helpers import run, tree, write_camvid
from fixtures.damage import damage_corpus, write_corpus
from fixtures.sift_flow import write_sift_flow
from PIL import Image

from kerasseg.cli import inspect_data
from kerasseg.data import DATA_SETS
from kerasseg.data.preparation.preparing import prepare
from kerasseg.labels import LABELS, colorize


class Page(HTMLParser):
    """The text, the pictures by what they show, and the rows of the tables of a page."""

    def __init__(self, path):
        super().__init__()
        self.text, self.pictures, self.rows, self._open, self.loads = [], {}, [], [], []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert not self._open, self._open

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "img":
            self.pictures[found["alt"]] = found
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append("")
        self.loads += [value for name, value in found.items() if name in ("src", "href") and not value.startswith(("data:", "#"))]
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if data.strip() and "style" not in self._open:
            self.text.append(" ".join(data.split()))
            if "tr" in self._open and self.rows[-1]:
                self.rows[-1][-1] += " ".join(data.split())

    def row(self, name: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == name)

    def picture(self, alt: str) -> np.ndarray:
        content = base64.b64decode(self.pictures[alt]["src"].partition(",")[2])
        return np.array(Image.open(BytesIO(content)).convert("RGB"))


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("camvid"))


@pytest.fixture(scope="module")
def pages(camvid, tmp_path_factory):
    """Of the folder itself, and of what was prepared of it."""
    root = tmp_path_factory.mktemp("pages")
    prepare("camvid", camvid, root / "prepared")
    assert run(inspect_data, "camvid", camvid, "--out", root / "plain.html", "--samples", 3) == 0
    assert run(inspect_data, "camvid", root / "prepared", "--out", root / "prepared.html", "--samples", 3) == 0
    return root


def test_the_page_says_what_is_there(pages, camvid):
    page = Page(pages / "plain.html")
    assert not page.loads and "http" not in re.sub(r"data:[^\"]+", "", page.source)
    labels = {split: [example.label for example in DATA_SETS["camvid"](camvid, split)] for split in ("train", "val")}
    table, total = LABELS["camvid"], {split: sum((one < 255).sum() for one in each) for split, each in labels.items()}
    for label, name in enumerate(table.classes):
        cells = page.row(name)[2:]
        for place, split in enumerate(("train", "val")):
            share = 100 * sum((one == label).sum() for one in labels[split]) / total[split]
            images = 100 * np.mean([(one == label).any() for one in labels[split]])
            assert cells[2 * place : 2 * place + 2] == [f"{share:.2f}", f"{images:.2f}"]
    every = np.concatenate([one.ravel() for each in labels.values() for one in each])
    assert f"{100 * (every == 255).mean():.2f}" in page.text
    assert f"{(every < 255).sum():,}" in page.text
    assert page.row("train")[:3] == ["train", "6", "48 × 40"] and page.row("train")[4] == "48 × 45"
    pixels = np.concatenate([example.image.reshape(-1, 3) for example in DATA_SETS["camvid"](camvid, "val")])
    assert page.row("val")[-1] == ", ".join(f"{channel:.2f}" for channel in pixels.mean(0))
    assert page.row("48 × 40")[1] == "2" and "most frequent sizes, px" in page.text
    assert "<svg" in page.source
    # Of 100 %, not of the most frequent class.
    bars = [float(width) for width in re.findall(r"<i style=\"width:([\d.]+)%", page.source)]
    largest = max(np.bincount(np.concatenate([one[one < 255] for one in labels[split]])).max() / total[split] for split in labels)
    assert max(bars) == pytest.approx(100 * np.sqrt(largest), abs=0.1) and max(bars) < 99


def test_samples_are_photograph_labels_and_both(pages, camvid):
    page, data = Page(pages / "plain.html"), DATA_SETS["camvid"](camvid, "train")
    assert "Examples of train" in page.text
    sharp = {alt for alt, found in page.pictures.items() if "pixelated" in found.get("style", "")}
    assert sharp == {alt for alt in page.pictures if alt.startswith("labels of ")} and sharp
    shown = [name for name in data.ids if f"image of {name}" in page.pictures]
    assert len(shown) == 3 and len(page.pictures) == 9
    for name in shown:
        example = data[data.ids.index(name)]
        np.testing.assert_array_equal(page.picture(f"labels of {name}"), colorize(example.label, data.labels))
        assert np.abs(page.picture(f"image of {name}").astype(int) - example.image).mean() < 8
        mixed, plain = page.picture(f"labels on it of {name}").astype(float), example.image.astype(float)
        expected = np.where((example.label == 255)[..., None], plain, 0.4 * plain + 0.6 * colorize(example.label, data.labels))
        assert np.abs(mixed - expected).mean() < 8
    assert all(name in page.text for name in (data.labels.classes[k] for k in np.unique(data[data.ids.index(shown[0])].label)[:-1]))


def test_prepared_or_not_is_the_same_page(pages):
    plain, prepared = ((pages / f"{name}.html").read_text() for name in ("plain", "prepared"))
    assert plain == prepared


def test_prepared_in_a_cloud_is_the_same_page(pages, tmp_path):
    """The file system in TensorFlow's memory stands for it."""
    gfile = pytest.importorskip("tensorflow").io.gfile
    for path in (path for path in (pages / "prepared").rglob("*") if path.is_file()):
        target = f"ram://{tmp_path.name}/{path.relative_to(pages / 'prepared')}"
        gfile.makedirs(target.rpartition("/")[0])
        with gfile.GFile(target, "wb") as file:
            file.write(path.read_bytes())
    arguments = ("--out", tmp_path / "page.html", "--samples", 3)
    assert run(inspect_data, "camvid", f"ram://{tmp_path.name}", *arguments) == 0
    assert (tmp_path / "page.html").read_text() == (pages / "plain.html").read_text()


def test_samples_show_all_classes_first(camvid, tmp_path):
    from kerasseg.evaluation.data_page import choose_samples

    data = DATA_SETS["camvid"](camvid, "train")
    rows = [{"id": name, "pixels": [{"0": 5}]} for name in data.ids]
    rows[3]["pixels"], rows[5]["pixels"] = [{"0": 5, "4": 1}], [{"9": 1}]
    for seed in range(8):
        chosen = choose_samples(data, rows, 4, seed)
        assert chosen == choose_samples(data, rows, 4, seed) and len(set(chosen)) == 4
        assert {3, 5} <= set(chosen[:3])
    assert len({tuple(choose_samples(data, rows, 4, seed)) for seed in range(8)}) > 1
    assert choose_samples(data, rows, 99, 0) == choose_samples(data, rows, 6, 0)


def test_warnings_and_broken_examples_stand_on_the_page(tmp_path, capsys):
    fates = write_corpus(tmp_path)
    damage_corpus(tmp_path, fates)
    page = tmp_path / "page.html"
    assert run(inspect_data, "csv", tmp_path / "list.csv", "--out", page, "--samples", 0) == 0
    out = capsys.readouterr().out
    found = Page(page)
    assert "Examples that cannot be used" in found.text
    assert any("truncated-image-jpg-0.jpg is damaged" in text for text in found.text)
    broken = [line for line in out.splitlines() if line.startswith("broken: ")]
    assert f"and {len(broken) - 20} more" in found.text and len(broken) > 60
    assert not found.pictures


def test_several_heads(tmp_path, capsys):
    write_sift_flow(tmp_path)
    page = tmp_path / "page.html"
    assert run(inspect_data, "sift_flow", tmp_path, "--out", page, "--split", "test", "--samples", 1) == 0
    found = Page(page)
    assert {alt.partition(" of ")[0] for alt in found.pictures} == {
        "image", "semantic labels", "semantic labels on it", "geometric labels", "geometric labels on it"
    }  # fmt: skip
    data = DATA_SETS["sift_flow"](tmp_path, "test")
    name = next(iter(found.pictures)).partition(" of ")[2]
    label = data[data.ids.index(name)].label[..., 1]
    np.testing.assert_array_equal(found.picture(f"geometric labels of {name}"), colorize(label, LABELS["sift_flow_geometric"]))
    assert found.row("horizontal") and found.row("awning")


def test_split_without_labels_and_names_as_they_are(tmp_path):
    root = write_camvid(tmp_path / "camvid")
    (tmp_path / "classes.txt").write_text("<b>bold</b>\n& more\n" + "".join(f"c{k}\n" for k in range(9)))
    lines = [f"{path},,test,<i>{path.stem}</i>" for path in sorted((root / "images" / "val").iterdir())]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    assert run(inspect_data, "csv", tmp_path / "list.csv", "--out", tmp_path / "page.html") == 0
    page = Page(tmp_path / "page.html")
    assert len(page.pictures) == 4 and "Classes" not in page.text
    assert any(text.startswith("<i>") for text in page.text)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("camvidd", "SRC"), "did you mean 'camvid'"),
        (("camvid", "SRC", "--split", "vall"), "did you mean 'val'"),
        (("camvid", "nowhere"), "no folder"),
        (("camvid", "SRC", "--samples", "-1"), "expected 0 or more"),
        (("camvid", "SRC", "--out", "."), "received a folder: pass --out data.html"),
        (("camvid", "SRC", "--data-arguments", "order=x"), "no option 'order'"),
    ],
)
def test_mistakes_are_one_line(arguments, message, camvid, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(inspect_data, *(str(camvid) if word == "SRC" else word for word in arguments)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0], lines
    assert not tree(tmp_path)


def test_all_broken(tmp_path, capsys):
    root = shutil.copytree(write_camvid(tmp_path / "camvid"), tmp_path / "copy")
    for path in (root / "images").rglob("*.png"):
        path.write_bytes(b"")
    assert run(inspect_data, "camvid", root, "--out", tmp_path / "page.html") == 2
    assert "all 10 examples of data set 'camvid' are broken; the first: " in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()
