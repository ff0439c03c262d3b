"""The benchmark of exported files keeps what it was not asked to make anew."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "export_parity.py"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("export_parity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_only_the_networks_that_are_named_are_made_anew(benchmark, tmp_path, monkeypatch, capsys):
    (tmp_path / "weights").mkdir()
    for arch in ("deeplab_v3", "deeplab_v3_cascade", "gcn"):
        (tmp_path / "weights" / f"{arch}-100.weights.h5").touch()
        benchmark.keep(tmp_path, arch, "tflite", 100, {"reason": "none"})
    asked = []
    monkeypatch.setattr(benchmark, "run_network", lambda arch, steps, folder: asked.append(arch))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["export_parity.py", "--work", str(tmp_path), "--only", "deeplab_v3", *arguments])
        benchmark.main()
        capsys.readouterr()
        return sorted(arch for arch, _ in benchmark.rows(tmp_path, 100))

    # What only shows a table makes nothing, and forgets nothing.
    assert run("--table", "--anew") == ["deeplab_v3", "deeplab_v3_cascade", "gcn"] and not asked
    assert run("--anew") == ["deeplab_v3_cascade", "gcn"] and asked == ["deeplab_v3"]
    kept = sorted(path.name for path in (tmp_path / "weights").iterdir())
    assert kept == ["deeplab_v3_cascade-100.weights.h5", "gcn-100.weights.h5"]
