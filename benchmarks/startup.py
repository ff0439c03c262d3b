"""How long `import kerasseg` and every `--help` take, as ratios to starting Python with NumPy; no TensorFlow may be in them."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    "python, import numpy": ["-c", "import numpy"],
    "import kerasseg": ["-c", "import kerasseg"],
    "train.py --help": ["train.py", "--help"],
    "evaluate.py --help": ["evaluate.py", "--help"],
    "tools/predict.py --help": ["tools/predict.py", "--help"],
    "tools/export.py --help": ["tools/export.py", "--help"],
}


def seconds(arguments: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main(rounds: int = 7) -> None:
    times = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            times[name].append(seconds(arguments))
    base = statistics.median(times["python, import numpy"])
    print(f"start-up, median of {rounds} interleaved runs (target: each under 1 s)")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"  {name:24} {median / base:5.2f} x python with numpy  ({median:.2f} s)")


if __name__ == "__main__":
    main()
