"""The gate: a file that computes something else than Keras does is never left, nor one that was not finished."""

import json
import os
import weakref

import numpy as np
import pytest
from helpers import give_random_weights, images
from test_export import SIZE, export, tiny

from kerasseg import KerassegError
from kerasseg.export import Tolerance, check_file, exporting, onnx, parity, tflite
from kerasseg.export.graph import plan
from kerasseg.export.parity import measure_parity, random_batches
from kerasseg.runtimes import open_file
from kerasseg.runtimes.description import Description, description_path, digest, read

BEFORE = b"an older file"


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def other():
    return give_random_weights(tiny(), seed=1)


def changed(content, model, change):
    """A file with one weight of its last convolution changed: the bytes of the kernel, wherever the file has them."""
    kernel = model.layers[-2].get_weights()[0]
    # TFLite stores (out, h, w, in), ONNX (out, in, h, w).
    for order in ((3, 0, 1, 2), (3, 2, 0, 1)):
        stored = np.ascontiguousarray(kernel.transpose(order)).tobytes()
        if content.count(stored) == 1:
            values = np.frombuffer(stored, np.float32).copy()
            values[np.abs(values).argmax()] = change(values[np.abs(values).argmax()])
            return content.replace(stored, values.tobytes())
    raise AssertionError("the kernel is not in the file")


CHANGES = {"weight": lambda value: 1.01 * value, "nan": lambda value: np.float32(np.nan)}


@pytest.fixture(params=["weight", "nan", "other network"])
def spoiled(request, monkeypatch, model, other):
    """A converter whose result is spoiled between conversion and gate."""
    right = {"tflite": tflite.convert_tflite, "onnx": onnx.convert_onnx}

    def spoil(content, convert):
        if request.param == "other network":
            return convert()
        return changed(content, model, CHANGES[request.param])

    def to_tflite(function, **arguments):
        def from_other():
            return right["tflite"](exporting.trace_plan(exporting.plan(other, TARGET)), **arguments).content

        found = right["tflite"](function, **arguments)
        return found._replace(content=spoil(found.content, from_other))

    def to_onnx(function):
        return spoil(right["onnx"](function), lambda: right["onnx"](exporting.trace_plan(exporting.plan(other, TARGET))))

    monkeypatch.setattr(tflite, "convert_tflite", to_tflite)
    monkeypatch.setattr(onnx, "convert_onnx", to_onnx)
    return request.param


TARGET = exporting.Target(input_size=SIZE)


@pytest.mark.parametrize(("format", "before"), [("tflite", False), ("tflite", True), ("onnx", False)])
def test_a_spoiled_file_is_not_left(tmp_path, spoiled, model, format, before):
    path = tmp_path / f"model.{format}"
    if before:
        path.write_bytes(BEFORE)
    with pytest.raises(KerassegError, match=r"disagrees with Keras: .*; no file was written") as caught:
        export(model, path, format=format)
    message = str(caught.value)
    assert "\n" not in message and ("not finite" if spoiled == "nan" else "relative error") in message
    # No class has changed: it is the error that shows.
    assert ("same class" in message) == (spoiled == "other network")
    assert [file.name for file in tmp_path.iterdir()] == ([path.name] if before else [])
    assert not before or path.read_bytes() == BEFORE


@pytest.mark.parametrize("result", ["labels", "coarse_labels", "nearest_labels", "probabilities"])
def test_labels_of_another_network_do_not_pass(tmp_path, monkeypatch, model, other, result):
    right = tflite.convert_tflite
    target = exporting.Target(input_size=SIZE, result=result)
    monkeypatch.setattr(
        tflite, "convert_tflite", lambda function, **known: right(exporting.trace_plan(exporting.plan(other, target)), **known)
    )
    with pytest.raises(KerassegError, match="disagrees with Keras: .*same class in"):
        export(model, tmp_path / "a.tflite", result=result)
    assert not list(tmp_path.iterdir())


def test_without_the_gate_it_would_be_left(tmp_path, model, spoiled):
    # It is the comparison that refuses, not the conversion.
    wide = Tolerance(None, None, 0.0)
    if spoiled == "nan":
        # No tolerance lets it pass.
        with pytest.raises(KerassegError, match="not finite"):
            exporting.export_model(model, tmp_path / "a.tflite", TARGET, tolerance=wide, measure_latency=False)
        return
    written = exporting.export_model(model, tmp_path / "a.tflite", TARGET, tolerance=wide, measure_latency=False)
    assert written.description.parity["relative_error"] > 1e-3


def test_a_saved_model_of_another_network_is_not_left(tmp_path, monkeypatch, model, other):
    right = exporting.write_plan
    export(model, tmp_path / "old", format="saved_model")
    kept = digest(tmp_path / "old")
    monkeypatch.setattr(exporting, "write_plan", lambda made, path: right(exporting.plan(other, made.target), path))
    for name in ("new", "old"):
        with pytest.raises(KerassegError, match="the SavedModel disagrees with Keras"):
            export(model, tmp_path / name, format="saved_model")
    assert [path.name for path in tmp_path.iterdir()] == ["old"] and digest(tmp_path / "old") == kept


def test_figures_by_hand(model):
    """One wrong number or label among right ones."""
    photograph = np.float32(images(SIZE, 1, block=5)[0])
    logits = [np.asarray(model(batch)) for batch in (photograph[np.newaxis], *random_batches(plan(model, TARGET)))]
    first, pixels = logits[0], SIZE[0] * SIZE[1]
    largest, worst = np.abs(first).max(), np.argsort(first[0, 3, 4])

    def compared(change, result="logits", quantize="none"):
        answers = iter([change(each.copy()) if each is first else right(each) for each in logits])
        made = plan(model, exporting.Target(input_size=SIZE, result=result, quantize=quantize))
        name = "labels" if result == "labels" else result
        return measure_parity(lambda _: {name: next(answers)}, made, [photograph])

    def right(each):
        return each

    def off(each, by=3.0):
        each[0, 3, 4, worst[-1]] -= by
        return each

    found = compared(off)
    assert found.images == 3 and found.real_images == 1
    assert found.relative_error == pytest.approx(3 / largest, rel=1e-3)
    assert found.rms_error == pytest.approx(3 / np.sqrt((first.astype(float) ** 2).sum()), rel=1e-3)
    assert compared(lambda each: off(each, 1e6)).argmax_agreement == pytest.approx(1 - 1 / pixels)
    for bad in (np.nan, np.inf, -np.inf):
        assert compared(lambda each, bad=bad: off(each, bad)) == (np.inf, np.inf, 0.0, 3, 1)
    for shape in (lambda each: each[..., :4], lambda each: each[:, 1:], lambda each: each[0], lambda each: each.astype(int)):
        assert compared(shape) == (np.inf, np.inf, 0.0, 3, 1)

    def right(each):  # noqa: F811
        return each.argmax(-1).astype(np.uint8)

    def chosen(label):
        def change(each):
            labels = right(each)
            labels[0, 3, 4] = label
            return labels

        return change

    # The second-best class loses what lies between the two.
    found = compared(chosen(worst[-2]), "labels")
    lost = first[0, 3, 4, worst[-1]] - first[0, 3, 4, worst[-2]]
    assert found.relative_error == pytest.approx(lost / largest) and found.argmax_agreement == pytest.approx(1 - 1 / pixels)
    for bad in (5, 255):
        assert compared(chosen(bad), "labels") == (np.inf, np.inf, 0.0, 3, 1)


@pytest.mark.parametrize("quantize", ["float16", "dynamic", "int8"])
def test_what_is_rounded_is_judged_on_photographs(model, quantize):
    photograph = np.float32(images(SIZE, 1, block=5)[0])
    made = plan(model, exporting.Target(input_size=SIZE, quantize=quantize))
    random = random_batches(made)

    def run(batch):
        # Beyond what was calibrated, anything.
        return {"logits": np.asarray(model(batch)) * (-1 if any(np.array_equal(batch, each) for each in random) else 1)}

    assert measure_parity(run, made, [photograph])[:3] == (0, 0, 1)
    assert measure_parity(run, made).relative_error > 1


@pytest.mark.parametrize("quantize", ["float16", "dynamic", "int8"])
def test_quantised_files_of_another_network_do_not_pass(tmp_path, monkeypatch, model, other, quantize):
    photographs = [np.float32(images(SIZE, 1, block=5, seed=seed)[0]) for seed in range(6)]
    target, right = exporting.Target(input_size=SIZE, quantize=quantize), tflite.convert_tflite
    known = {"images": photographs[:2], "calibration": photographs, "measure_latency": False}
    exporting.export_model(model, tmp_path / "right.tflite", target, **known)
    assert check_file(tmp_path / "right.tflite", model, images=photographs[:2]).real_images == 2

    def wrong(function, **arguments):
        return right(exporting.trace_plan(exporting.plan(other, target)), **arguments)

    monkeypatch.setattr(tflite, "convert_tflite", wrong)
    with pytest.raises(KerassegError, match=r"disagrees with Keras: .*rms error .*same class in"):
        exporting.export_model(model, tmp_path / "wrong.tflite", target, **known)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["right.json", "right.tflite"]


@pytest.mark.parametrize("format", ["tflite", "onnx", "saved_model"])
def test_an_existing_file_is_checked(tmp_path, model, other, format):
    path = tmp_path / {"tflite": "a.tflite", "onnx": "a.onnx", "saved_model": "a"}[format]
    written = export(model, path, format=format)
    assert check_file(path, model)._asdict() == pytest.approx(written.parity, abs=1e-9)
    with pytest.raises(KerassegError, match=r"disagrees with Keras: .*is not what Keras computes"):
        check_file(path, other)
    with pytest.raises(KerassegError, match="disagrees with Keras: its results are not finite, or have another name, shape"):
        check_file(path, tiny(4))
    with pytest.raises(KerassegError, match="takes images of 3 channels, tiny of 1: it is another network's file"):
        check_file(path, tiny(channels=1))


def test_a_file_without_a_description_is_checked_all_the_same(tmp_path, model, other):
    for result in ("logits", "probabilities", "labels"):
        export(model, tmp_path / "a.tflite", result=result)
        (tmp_path / "a.json").unlink()
        assert check_file(tmp_path / "a.tflite", model).argmax_agreement > 0.999
        with pytest.raises(KerassegError, match="disagrees with Keras"):
            check_file(tmp_path / "a.tflite", other)


@pytest.mark.parametrize("format", ["tflite", "onnx", "saved_model"])
def test_any_later_change_is_found(tmp_path, model, format):
    path = tmp_path / {"tflite": "a.tflite", "onnx": "a.onnx", "saved_model": "a"}[format]
    export(model, path, format=format)
    part = path / "variables/variables.data-00000-of-00001" if path.is_dir() else path
    content = part.read_bytes()
    for place in (0, len(content) // 2, len(content) - 1):
        part.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(KerassegError, match=r"its SHA-256 differs.*export it again") as caught:
            open_file(path)
        assert "\n" not in str(caught.value)
    part.write_bytes(content + b"\0")
    with pytest.raises(KerassegError, match="its SHA-256 differs"):
        check_file(path, model)
    part.write_bytes(content)
    open_file(path)


def test_a_file_and_a_description_that_do_not_belong_together(tmp_path, model, other):
    for name, network in (("one", model), ("two", other)):
        export(network, tmp_path / f"{name}.tflite")
    os.replace(tmp_path / "two.tflite", tmp_path / "one.tflite")
    with pytest.raises(KerassegError, match=r"one.tflite' is not the file that one\.json describes.*export it again"):
        open_file(tmp_path / "one.tflite")
    # Both moved are still a pair.
    export(model, tmp_path / "one.tflite")
    os.replace(tmp_path / "one.tflite", tmp_path / "renamed.tflite")
    os.replace(tmp_path / "one.json", tmp_path / "renamed.json")
    assert open_file(tmp_path / "renamed.tflite").description.file == "one.tflite"


def test_descriptions(tmp_path, model):
    written = export(model, tmp_path / "a.tflite")
    assert read(tmp_path / "a.tflite") == Description.from_json(json.loads((tmp_path / "a.json").read_text())) == written
    assert description_path(tmp_path / "a.tflite") == tmp_path / "a.json" and description_path(tmp_path) == tmp_path / "model.json"
    (tmp_path / "b.tflite").write_bytes(b"")
    assert read(tmp_path / "b.tflite") is None
    for text, result in (("{}", None), ("[1]", None), ('{"classes": []}', None)):
        (tmp_path / "b.json").write_text(text)
        assert read(tmp_path / "b.tflite") is result
    for text, message in (("{", "is damaged"), ('{"kerasseg": "1", "sha256": "0"}', "no description of an exported network")):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(KerassegError, match=message) as caught:
            read(tmp_path / "b.tflite")
        assert "\n" not in str(caught.value)


WRONG = {
    **dict.fromkeys(("file", "format", "quantization", "sha256", "input", "outputs", "parity", "tolerance", "operations"), 5),
    "no outputs": {"outputs": {}},
    "a list": {"outputs": ["logits"]},
    "none": {"outputs": None},
    "no output": {"outputs": {"logits": None}},
    "no meaning": {"outputs": {"logits": {"shape": [1]}}},
    "head": {"outputs": {"logits": {"meaning": "logits", "head": []}}},
    "limit": {"tolerance": {"rms_error": "large"}},
}


def test_descriptions_with_something_else_in_them(tmp_path, model):
    written = export(model, tmp_path / "a.tflite")
    for name, wrong in WRONG.items():
        (tmp_path / "a.json").write_text(json.dumps(written.to_json() | (wrong if isinstance(wrong, dict) else {name: wrong})))
        with pytest.raises(KerassegError, match=r"^it is no description of an exported network \(.*\): export it again$"):
            open_file(tmp_path / "a.tflite")
    (tmp_path / "a.json").write_text(json.dumps(written.to_json() | {"format": "onnx"}))
    with pytest.raises(KerassegError, match=r"^'.*' is a TFLite file, a\.json describes another, ONNX file: export it again$"):
        open_file(tmp_path / "a.tflite")


def test_score_maps_are_not_kept(monkeypatch, model):
    right, seen = parity._reference, []

    def reference(*arguments):
        assert sum(each() is not None for each in seen) <= 1
        scores = right(*arguments)
        seen.append(weakref.ref(scores["logits"]))
        return scores

    monkeypatch.setattr(parity, "_reference", reference)
    photographs = [np.float32(images(SIZE, 1, block=5, seed=seed)[0]) for seed in range(3)]
    assert measure_parity(lambda batch: {"logits": np.asarray(model(batch))}, plan(model, TARGET), photographs)[:3] == (0, 0, 1)
    assert len(seen) == 5
