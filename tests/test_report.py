"""The pages of reports, read back; no browser is needed."""

import base64
import dataclasses
import errno
import importlib.resources
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
from inference_helpers import LABELS, Data

from kerasseg.evaluation import Evaluation, ImageScore, write_report
from kerasseg.evaluation.comparison_page import write_comparison
from kerasseg.evaluation.figures import PICTURE_WIDTH, error_picture, label_picture, matrix_picture, run_color
from kerasseg.evaluation.page import write_page
from kerasseg.labels import IGNORE, IGNORE_COLOR
from kerasseg.metrics import class_counts, confusion_matrix, scores

_VOID = {"meta", "img", "br", "hr", "input", "link", "path", "use", "rect"}
_BAD = '<b>&"'


class Page(HTMLParser):
    """Demands that tags are balanced; keeps the text of each element and what it refers to."""

    def __init__(self, path):
        super().__init__()
        self.source = Path(path).read_text("utf-8")
        self.open, self.tags, self.links, self.images, self.words = [], [], [], [], []
        self.feed(self.source)
        self.close()
        assert not self.open
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        assert len(values) == len(attrs)
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name.split(":")[-1] in ("src", "href", "srcset", "action", "data")]
        self.images += [values] if tag == "img" else []
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        # An element of SVG may be closed without having anything inside.
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def report(classes=("ground", _BAD, "dog"), matrix=((60, 10, 0), (5, 20, 5), (0, 0, 0)), **more):
    """What scores.json holds, written by hand; no two figures alike."""
    count = len(classes)
    return {
        "network": "fcn8s",
        "data": "three",
        "split": "val",
        "inference": {"scales": [0.5, 1.25], "flip": True, "method": {"name": "tiles", "size": [65, 129]}},
        "num_images": 1234,
        "num_pixels": 100,
        "pixel_accuracy": 0.8123,
        "mean_accuracy": 0.7234,
        "mean_iou": 0.6345,
        "frequency_weighted_iou": 0.5456,
        "classes": list(classes),
        "palette": [[0, 0, 0], [200, 40, 40], [40, 80, 200]][:count] + [[1, 2, index] for index in range(count - 3)],
        "excluded": ["ground"],
        "per_class_iou": [0.9111, 0.3222] + [None] * (count - 2),
        "per_class_accuracy": [0.8333, 0.6444] + [None] * (count - 2),
        "confusion_matrix": np.array(matrix).tolist(),
        "images": [{"id": "image-0", "mean_iou": None, "pixel_accuracy": 0.5}],
        **more,
    }


FULL = {
    "intervals": {
        "level": 0.95,
        "replicates": 777,
        "pixel_accuracy": [0.801, 0.829],
        "mean_accuracy": [0.702, 0.748],
        "mean_iou": [0.603, 0.667],
        "frequency_weighted_iou": [0.504, 0.586],
        "per_class_iou": [[0.905, 0.925], [0.306, 0.344], None],
    },
    "groups": {
        "classes": ["flat", "beasts"],
        "excluded": ["beasts"],
        "mean_iou": 0.4567,
        "pixel_accuracy": 0.9678,
        "per_class_iou": [0.1789, None],
    }
    | {"per_class_accuracy": [0.2891, None], "confusion_matrix": [[1, 0], [0, 0]]},
    "boundary": {"distance": 7.0, "boundary": {"num_pixels": 9, "pixel_accuracy": 0.3912, "mean_iou": 0.1023}}
    | {"internal": {"num_pixels": 91, "pixel_accuracy": 0.9934, "mean_iou": None}},
    "trimap": {
        "boundary": "labels",
        "bands": [{"width": 1, "num_pixels": 3, "mean_iou": None, "pixel_accuracy": 0.4}],
    },
    "boundary_f": {"tolerance": None, "mean": 0.5045, "per_class": [0.4156, 0.5267, None], "num_images": 3},
    "calibration": {"error": 0.0378, "mean_confidence": 0.8489}
    | {
        "bins": [
            {"low": 0.0, "high": 0.5, "num_pixels": 0, "accuracy": None, "confidence": None},
            {"low": 0.5, "high": 1.0, "num_pixels": 100, "accuracy": 0.8, "confidence": 0.85},
        ]
    },
    "timing": {"seconds": 12.34, "prediction_seconds": 9.87, "scoring_seconds": 1.65, "images_per_second": 100.21},
}


def extremes(width=600, height=400):
    generator = np.random.default_rng(0)
    # A channel of depth behind the colours.
    image = generator.integers(0, 256, (height, width, 4), np.uint8)
    label = np.where(np.arange(width) < 9, IGNORE, 1) * np.ones((height, 1), np.int32)
    example = SimpleNamespace(id="one", image=image, label=label.astype(np.int32))
    return [("worst", [(example, np.zeros((height, width), np.int32), ImageScore(_BAD, 0.1212, float("nan")))]), ("best", [])]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, report(**FULL), extremes())
    return Page(path)


def test_templates_are_found_as_package_data():
    folder = importlib.resources.files("kerasseg.evaluation") / "templates"
    assert {"base.html", "report.html", "comparison.html"} <= {file.name for file in folder.iterdir()}


def test_a_page_shows_every_figure(full):
    expected = """fcn8s on three, val|1,234 images|100 labelled pixels|81.23|72.34|63.45|54.56|[80.1, 82.9]|[70.2, 74.8]
        |[60.3, 66.7]|[50.4, 58.6]|Network run at scales 0.5, 1.25; mirrored too; method tiles (size 65×129).
        |Left out of the means over classes: ground.|91.11|32.22|83.33|64.44|[90.5, 92.5]|[30.6, 34.4]|70.00|30.00
        |flat|beasts (in no mean)|45.67|96.78|17.89|28.91|up to 7 px from a boundary|39.12|10.23|99.34
        |within 0.75 % of the diagonal|50.45 %|41.56|52.67|3.78 %|84.89 %|12.34|9.87|1.65|100.21|95 % of 777 draws
        |12.12|85.7|16.7|ignored"""
    missing = [words.strip() for words in expected.split("|") if words.strip() not in full.text]
    assert not missing
    # Of the 20 errors: ground taken for the second class, 10 of 70; the second for ground and for dog, 5 of 30.
    frequent = full.text[full.text.index("Most frequent") :]
    assert f"ground {_BAD} 10 14.29 50.00" in frequent and f"{_BAD} dog 5 16.67 25.00" in frequent
    assert f'title="{"ground"} taken for &lt;b&gt;&amp;&#34;: 10 pixels"' in full.source


def test_a_page_says_nothing_of_what_is_not_known(full):
    assert not re.search(r"\b(nan|none|null|inf|undefined)\b", full.text, re.IGNORECASE)
    row = full.text[full.text.index("Classes") : full.text.index("Groups")]
    assert row.split("dog")[1].split() == ["–", "–", "–", "0.00"]


def test_a_page_loads_nothing(full):
    assert full.links and all(link.startswith(("data:", "#")) for link in full.links)
    assert "http:" not in full.source and "https:" not in full.source and "//" not in re.sub(r"base64,[^\"]*", "", full.source)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(full.tags)
    assert "@import" not in full.source and all(ref.startswith("#") for ref in re.findall(r"url\(\s*([^)]*)\)", full.source))
    assert '<html lang="en">' in full.source and 'name="viewport"' in full.source and "prefers-color-scheme: dark" in full.source
    names = re.findall(r' id="([^"]*)"', full.source)
    assert {link[1:] for link in full.links if link.startswith("#")} <= set(names)


def test_a_page_carries_its_pictures(full):
    assert [image["alt"] for image in full.images] == [f"{what} of {_BAD}" for what in ("image", "truth", "prediction", "error")]
    pictures = []
    for image in full.images:
        head, data = image["src"].split(",")
        pictures.append(PIL.Image.open(io.BytesIO(base64.b64decode(data, validate=True))))
        assert head == f"data:image/{pictures[-1].format.lower()};base64"
        assert pictures[-1].size == (int(image["width"]), int(image["height"])) == (PICTURE_WIDTH, 320)
    photograph, truth, prediction, error = pictures
    assert photograph.format == error.format == "JPEG" and truth.mode == prediction.mode == "P"
    colors = np.asarray(truth.convert("RGB"))
    assert tuple(colors[5, 0]) == IGNORE_COLOR and tuple(colors[5, 100]) == (200, 40, 40)
    assert not np.asarray(prediction.convert("RGB")).any()
    # All that counts is wrong.
    assert np.asarray(error)[:, 60:, 0].mean() > 180 > 90 > np.asarray(error)[:, 60:, 1].mean()


def test_names_are_no_markup(full):
    assert "<b>&" not in full.source and full.text.count(_BAD) > 5


def test_what_a_report_lacks_is_left_out(tmp_path):
    path = tmp_path / "page.html"
    bare = report(excluded=[], inference=None, network=None, split=None)
    # As written before there were palettes and excluded classes.
    del bare["palette"], bare["excluded"]
    write_page(path, bare)
    page = Page(path)
    assert "predictions on three" in page.text and not page.images and "<svg" not in page.source
    for words in ("interval", "Groups", "Images", "Boundar", "Confidence", "Time", "Left out", "Network", "[", "None"):
        assert words not in page.text, words
    write_page(path, report(calibration=FULL["calibration"]))
    assert [word in Page(path).text for word in ("Confidence", "Boundar", "Time")] == [True, False, False]


def test_a_perfect_prediction_has_no_confusions(tmp_path):
    write_page(tmp_path / "page.html", report(matrix=np.diag([5, 6, 7])))
    assert "Most frequent" not in Page(tmp_path / "page.html").text


def test_many_classes_make_a_picture_and_stay_small(tmp_path):
    names = [f"class-{index}" for index in range(150)]
    matrix = np.random.default_rng(0).integers(0, 1000, (150, 150))
    matrix[149, 148] = 54321
    write_page(tmp_path / "page.html", report(names, matrix), extremes())
    page = Page(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size < 2e6
    assert page.images[-1]["alt"].startswith("confusion matrix") and page.images[-1]["width"] == "600"
    frequent = page.text[page.text.index("Most frequent") :]
    assert "class-149 class-148 54,321" in frequent and frequent.count(" class-") == 40
    # The darkest cell of its row lies where the largest count is.
    data = base64.b64decode(page.images[-1]["src"].split(",")[1])
    cells = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("L"))[2::4, 2::4]
    assert cells.shape == (150, 150) and cells[149].argmin() == 148


def test_errors_are_red_the_rest_is_grey():
    image = np.full((1, 4, 3), 100, np.uint8)
    image[0, 3] = (255, 0, 0)
    found = error_picture(image, np.array([[1, 1, IGNORE, 0]]), np.array([[1, 0, 1, 0]]))
    # Grey 100: 40 + 0.45 · 100; 0.15 · 100 + 0.85 · (225, 30, 30) = (206.25, 40.5, 40.5); 195 + 0.2 · 100. Red is grey 76.245.
    np.testing.assert_array_equal(found, [[[85] * 3, [206, 40, 40], [215] * 3, [74] * 3]])


def test_pictures_are_no_larger_than_need_be():
    assert label_picture(np.zeros((30, 40), np.int32), [(0, 0, 0)])[1:] == (40, 30)
    assert label_picture(np.zeros((1, 4000), np.int32), [(0, 0, 0)])[1:] == (PICTURE_WIDTH, 1)
    # Between two classes lies no other.
    label = np.array([[0, 0, 200], [200, 0, 0]], np.int32).repeat(301, 0).repeat(331, 1)
    picture = label_picture(label, [(index, 0, 0) for index in range(201)])
    pixels = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",")[1]))).convert("RGB"))
    assert np.unique(pixels[..., 0]).tolist() == [0, 200]
    picture = matrix_picture(np.array([[0, 1], [0.25, 0]]), cell=1)
    pixels = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",")[1]))).convert("RGB"))
    assert pixels[0, 0].tolist() == [255, 255, 255] and pixels[0, 1].tolist() == [8, 48, 107]
    # A quarter is half way: its square root.
    np.testing.assert_allclose(pixels[1, 0], [131, 151, 181], atol=1)


def test_a_comparison_shows_every_run(tmp_path):
    second = report(mean_iou=0.7001, per_class_iou=[0.5, 0.9, None], per_class_accuracy=[0.5, 0.9, None], trimap=FULL["trimap"])
    third = report(classes=("ground", "cow"), matrix=np.eye(2, dtype=int), mean_iou=None)
    between = {"score": "mean_iou", "difference": 0.0656, "low": 0.0111, "high": 0.1222, "p_value": 0.0123}
    others = ({"low": -0.0111}, {"difference": -0.2, "low": -0.3, "high": -0.1, "score": "pixel_accuracy"}, {"low": 0.0})
    differences = [{"a": _BAD, "b": "one", **between, **other} for other in ({}, *others)]
    write_comparison(tmp_path / "page.html", {"one": report(**FULL), _BAD: second, "third": third}, differences)
    page = Page(tmp_path / "page.html")
    assert "63.45 [60.3, 66.7] 70.01 –" in page.text and "<strong>70.01</strong>" in page.source
    assert "<strong>63.45</strong>" not in page.source and "<strong>81.23</strong>" not in page.source
    assert f"{_BAD} − one mean IoU {_BAD} is better +6.56 +1.11 to +12.22 0.0123" in page.text
    assert f"{_BAD} − one pixel accuracy one is better −20.00 −30.00 to −10.00" in page.text
    assert "cannot be told apart +6.56 −1.11 to +12.22" in page.text and page.text.count("cannot be told apart") == 2
    classes = page.text[page.text.index("Classes") :]
    assert "ground (in no mean) 91.11 50.00 91.11" in classes and "cow – – 32.22" in classes and "dog – – –" in classes
    assert "boundary F 50.45 – –" in page.text and "images a second 100.21 – –" in page.text
    assert page.source.count("<svg") == 3 and not page.images and "None" not in page.text
    assert all(link.startswith("#") for link in page.links)
    write_comparison(tmp_path / "page.html", {"one": report(), "two": report()}, [])
    assert not [word for word in ("Differences", "<svg", "images a second") if word in (tmp_path / "page.html").read_text("utf-8")]


def test_a_comparison_says_how_each_network_was_run(tmp_path):
    crf = {"name": "deeplab_v1", "theta_alpha": 49.0}
    second = report(inference={"scales": [1.0], "flip": False, "method": {"name": "whole_image"}, "crf": crf})
    write_comparison(tmp_path / "page.html", {"one": report(), "two": second, "three": report(inference=None)})
    ways = ("scales 0.5, 1.25; mirrored too; method tiles (size 65×129)", "scale 1; crf deeplab v1 (theta alpha 49)", "–")
    assert f"run at {' '.join(ways)} Classes" in Page(tmp_path / "page.html").text


def test_a_comparison_says_why_there_is_no_difference(tmp_path):
    path, third = tmp_path / "page.html", report(classes=("ground", "cow"), matrix=np.eye(2, dtype=int))
    reports = {"one": report(), "two": report(excluded=[_BAD]), "three": third}
    write_comparison(path, reports, reasons=[f"two - one: no difference, since {_BAD}"])
    page = Page(path)
    assert f"Differences on the same images two - one: no difference, since {_BAD}" in page.text and "interval" not in page.text
    # Classes that only some leave out are said with these.
    assert f"left out of means ground {_BAD} ground" in page.text and "in no mean" not in page.text
    # The third has no dog.
    write_comparison(path, {"one": report(excluded=["dog"]), "two": report(excluded=["dog"]), "three": {**third, "excluded": []}})
    text = Page(path).text
    assert text.count("in no mean") == text.count("dog (in no mean)") == 1
    assert "left out of means" not in text and "Differences" not in text


BANDS = [{"width": width, "num_pixels": 3, "mean_iou": 0.1 * width, "pixel_accuracy": 0.5} for width in (1, 2)]


@pytest.mark.parametrize("part", [{"trimap": {"boundary": "labels", "bands": BANDS}}, {"calibration": FULL["calibration"]}])
def test_curves_have_the_colours_of_their_runs(tmp_path, part):
    names, path = ["one", "_two", "$three$", r"$\foo$"], tmp_path / "page.html"
    # The first has none, which moves no colour; one that is left alone is named as well.
    for shown in (names[:2], names):
        write_comparison(path, {name: report(**(part if name != "one" else {})) for name in shown})
        source = path.read_text("utf-8")
        legend = dict(re.findall(r'background:(#\w+)"></span><span>([^<]*)', source)[: len(shown)])
        assert legend == {run_color(place): name for place, name in enumerate(shown)}
        curves = re.findall(r"<svg.*?</svg>", source, re.DOTALL)
        for curve in curves:
            assert set(re.findall(r"stroke: (#\w+)", curve)) & set(legend) == set(legend) - {run_color(0)}
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", "".join(curves))
        assert [text for text in texts if text in names] == shown[1:] * len(curves)


def evaluation():
    data = Data(2)
    predictions = [np.full(example.label.shape, 1, np.int32) for example in data.examples]
    matrices = [confusion_matrix(example.label, one, 3) for example, one in zip(data.examples, predictions, strict=True)]
    images = [ImageScore(example.id, 0.25, 0.5) for example in data.examples]
    counts = np.stack([class_counts(matrix) for matrix in matrices])
    total = sum(matrices)
    return Evaluation(total, LABELS, scores(total), images, counts=counts), list(
        zip(data.examples, predictions, images, strict=True)
    )


def test_a_report_is_whole(tmp_path):
    found, triples = evaluation()
    triples[1][0].label = {"other": None, "semantic": triples[1][0].label}
    found = dataclasses.replace(found, task="semantic")
    write_report(tmp_path, found, [triple[:2] for triple in triples], [("worst", triples[:1]), ("best", triples[1:])])
    assert sorted(os.listdir(tmp_path)) == ["counts.npz", "pictures.png", "report.html", "scores.json", "scores.txt"]
    assert json.loads((tmp_path / "scores.json").read_text("utf-8")) == found.to_json()
    with np.load(tmp_path / "counts.npz") as file:
        assert file["ids"].tolist() == ["image-0", "image-1"]
        np.testing.assert_array_equal(file["counts"], found.counts)
    page = Page(tmp_path / "report.html")
    assert len(page.images) == 8 and "Worst image-0 mean IoU 25.00 · pixel accuracy 50.00" in page.text
    # Counts of an evaluation before would be compared as if they were this one's.
    write_report(tmp_path, dataclasses.replace(found, counts=None))
    assert not (tmp_path / "counts.npz").exists()


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    path.write_text("before")
    write = Path.write_text

    def refuse(self, text, **options):
        write(self, text[:100], **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", refuse)
    for attempt in (lambda: write_page(path, report()), lambda: write_comparison(path, {"one": report()})):
        with pytest.raises(OSError, match="No space left") as caught:
            attempt()
        assert caught.value.filename == str(path)
    assert os.listdir(tmp_path) == ["page.html"] and path.read_text() == "before"
