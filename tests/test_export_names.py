"""What is refused before anything is written: contradictions, and names that belong to something else."""

import numpy as np
import pytest
from test_export import export, tiny

from kerasseg import KerassegError
from kerasseg.export import Target


@pytest.fixture(scope="module")
def small():
    return tiny()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "onix"}, "unknown format 'onix': did you mean 'onnx'"),
        ({"quantize": "int4"}, "unknown quantization 'int4': did you mean 'int8'"),
        ({"result": "logit"}, "unknown result 'logit': did you mean 'logits'"),
        ({"format": "onnx", "quantize": "int8"}, "format onnx is float32 only, received quantize='int8'"),
        ({"format": "saved_model", "select_tf_ops": True}, "select_tf_ops is a question of TFLite"),
        ({"input_size": None}, "a TFLite file takes images of one size: pass input_size"),
        ({"batch_size": None}, "takes one number of images a call"),
        ({"batch_size": 0}, "batch_size is 0: expected a number of images of at least 1"),
        ({"input_size": (0, 5)}, "expected height and width in pixels"),
        ({"input_size": (5,)}, "expected height and width in pixels"),
        ({"input_size": 513}, "input_size is 513: expected height and width in pixels"),
        ({"input_size": "99"}, "expected height and width in pixels"),
        ({"input_size": (True, 5)}, "expected height and width in pixels"),
        ({"batch_size": True}, "batch_size is True: expected a number of images"),
        ({"format": "onnx", "input_size": None, "result": "nearest_labels"}, "nearest_labels are those of one size"),
    ],
)
def test_contradictions_are_refused(arguments, message):
    with pytest.raises(KerassegError, match=message) as caught:
        Target(**{"input_size": (32, 32), **arguments})
    assert "\n" not in str(caught.value)


def test_names_of_files(tmp_path, small):
    with pytest.raises(KerassegError, match=r"expected a file name that ends in \.tflite"):
        export(small, tmp_path / "model.onnx")
    with pytest.raises(KerassegError, match="expected the name of a directory"):
        export(small, tmp_path / "model.onnx", format="saved_model")
    for _ in range(2):
        for text in ("{}", "[1]", "5", '{"file": 5}', '{"my": "settings"}'):
            (tmp_path / "model.json").write_text(text)
            with pytest.raises(KerassegError, match="its JSON would overwrite it"):
                export(small, tmp_path / "model.tflite")
        (tmp_path / "model.tflite").touch()
    # What is left of a description is replaced.
    (tmp_path / "model.json").write_text('{"file": "model.tfl')
    export(small, tmp_path / "model.tflite")
    for name in ("model.json", "model.tflite"):
        (tmp_path / name).unlink()
    export(small, tmp_path / "model.onnx", format="onnx")
    with pytest.raises(KerassegError, match=r"describes model\.onnx: name another file"):
        export(small, tmp_path / "model.tflite")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/letter.txt").write_text("dear")
    with pytest.raises(KerassegError, match="is a folder with something else in it"):
        export(small, tmp_path / "folder", format="saved_model")
    (tmp_path / "folder/saved_model.pb").touch()
    with pytest.raises(KerassegError, match="is a folder with something else in it"):
        export(small, tmp_path / "folder", format="saved_model")
    assert (tmp_path / "folder/letter.txt").exists()
    (tmp_path / "folder/letter.txt").unlink()
    # Its own is replaced, and so is that.
    for _ in range(2):
        export(small, tmp_path / "folder", format="saved_model")
    assert Target(quantize="int8", input_size=(180, 240), result="labels").name == "tflite-int8-labels-180x240"
    assert Target("onnx", batch_size=None).name == "onnx-any-batch-any"
    ours = Target(input_size=[np.int64(32), 48], batch_size=np.int32(2))
    assert ours == Target(input_size=(32, 48), batch_size=2) and type(ours.input_size[0]) is type(ours.batch_size) is int
