"""`tools/web_page.py`: a page that segments photographs in the browser."""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from kerasseg.cli.demo import DEMO_NETWORK
from kerasseg.cli.running import make_parser, run_command
from kerasseg.cli.vendoring import runtime_packages, vendor
from kerasseg.errors import KerassegError

_WEB = Path(__file__).resolve().parents[1] / "web"
_PAGE = ("index.html", "page.css", "page.js", "segment.js")
# Besides them, what is in a folder that was built here before.
_BUILT = ("vendor", "samples", "network.json", "network.tflite", "network.onnx", "page.json")
_RUNTIMES = {"tflite": "litert", "onnx": "onnxruntime"}
_TYPES = {"tflite": ("float32", "uint8"), "onnx": ("float32",)}
# Results are compared or taken as class numbers; LiteRT.js hands out no other integers.
_RESULT_TYPES = {"tflite": ("float32", "uint8", "int32"), "onnx": ("float32", "uint8", "int32", "int64")}
_DRAWINGS = 6
# Larger than the network's input: drawings are looked at, too.
_DRAWING_SIZE = (192, 256)
_SAMPLE_SIDE = 1280


def parser() -> argparse.ArgumentParser:
    """Makes the parser of `tools/web_page.py`."""
    made = make_parser(
        "web_page.py", "Build a folder with a page that segments photographs in the browser, on the visitor's own device."
    )
    made.add_argument(
        "file", nargs="?", default=None, metavar="FILE", help="exported .tflite or .onnx, its JSON beside it (default: the demo's)"
    )
    made.add_argument("--out", required=True, help="the folder; any web server can serve it")
    made.add_argument(
        "--samples",
        nargs="+",
        default=None,
        metavar="IMAGE",
        help="photographs to try it on (default: drawings, for the demo's network)",
    )
    made.add_argument("--threads", action="store_true", help="several threads, for servers that send COOP and COEP headers")
    made.add_argument("--packages", default=None, help="folder with the npm packages as tarballs (default: npm fetches them)")
    made.add_argument(
        "--serve",
        nargs="?",
        type=int,
        const=8000,
        default=None,
        metavar="PORT",
        help="serve it, on this machine alone; 0: at any free port",
    )
    return made


def run(arguments: Sequence[str]) -> None:
    """Builds the page as the arguments say.

    Raises:
        KerassegError: If a browser cannot run the file, or the runtime cannot be had; nothing is left in the folder then.
    """
    options = parser().parse_args(arguments)
    if options.serve is not None and not 0 <= options.serve < 1 << 16:
        raise KerassegError(f"--serve {options.serve}: expected a port, 1 to 65535, or 0 for any that is free")
    build_page(
        options.file or DEMO_NETWORK, options.out, samples=options.samples, threads=options.threads, packages=options.packages
    )
    size = sum(path.stat().st_size for path in Path(options.out).rglob("*") if path.is_file())
    print(f"page: {options.out} ({size / 1e6:.1f} MB); serve the folder, by --serve or any web server")
    if options.serve is not None:
        server = _opened_server(options.out, options.serve)
        print(f"http://localhost:{server.server_port} (Ctrl-C ends it)", flush=True)
        server.serve_forever()


def _opened_server(folder, port: int) -> ThreadingHTTPServer:
    try:
        return make_server(folder, port)
    except OSError as error:
        # After the last port comes 0, which takes any that is free.
        other = (port + 1) % (1 << 16)
        raise KerassegError(
            f"--serve {port}: {error.strerror}; the page is built, serve it at another port, such as --serve {other}"
        ) from error


def build_page(file, out, *, samples=None, threads: bool = False, packages=None) -> None:
    """Builds the folder, whole or not at all; a page that was built there before is replaced.

    Args:
        file: Exported `.tflite` or `.onnx`, its JSON beside it.
        out: The folder.
        samples: Paths of photographs offered on the page; `None`: drawings if the network was trained on them, else none.
        threads: Whether the page uses several threads where the browser allows it.
        packages: Folder with the npm packages' tarballs; `None`: npm fetches them.
    Raises:
        KerassegError: If a browser cannot run the file, the runtime cannot be had, or the folder holds what is not of a page.
    """
    file = Path(file)
    description = _checked_description(file)
    out = _checked_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".unfinished-") as folder:
        page = Path(folder) / "page"
        runtime = page / "vendor" / _RUNTIMES[description["format"]]
        runtime.mkdir(parents=True)
        tarballs = None if packages is None else Path(packages)
        vendor(runtime_packages(description["format"], threads=threads), runtime, _WEB / "licenses", tarballs)
        _write_vendor_index(page / "vendor")
        for name in _PAGE:
            shutil.copyfile(_WEB / name, page / name)
        network = f"network.{description['format']}"
        shutil.copyfile(file, page / network)
        (page / "network.json").write_text(json.dumps({**description, "file": network}, indent=2) + "\n")
        found = list(_write_samples(page / "samples", samples, description))
        (page / "page.json").write_text(json.dumps({"threads": threads, "samples": found}, indent=2) + "\n")
        if out.exists():
            # Not removed first: what cannot be moved away stays whole.
            out.rename(Path(folder) / "old")
        page.rename(out)


def _checked_out(out) -> Path:
    """The folder's own place, behind links, if it is new, empty, or a page and nothing besides."""
    given, out = out, Path(out).resolve()
    if out == Path.cwd() or out in Path.cwd().parents:
        raise KerassegError(f"--out {given} is the folder you are in: run the command from outside it")
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    foreign = sorted(names - {*_PAGE, *_BUILT})
    if foreign:
        raise KerassegError(f"--out {given} holds {foreign[0]}, which is not of this command: expected a new folder")
    if (out.exists() and not out.is_dir()) or (names and "segment.js" not in names):
        raise KerassegError(f"--out {given} is there and no page of this command: expected a new folder")
    return out


def _checked_description(file: Path) -> dict:
    """The JSON beside the file, if a browser can run what it describes."""
    from kerasseg.runtimes.description import description_path, read

    if not file.is_file():
        raise KerassegError(f"no exported file at '{file}': expected a .tflite or .onnx file that tools/export.py wrote")
    description = read(file)
    if description is None:
        raise KerassegError(
            f"{file} has no {description_path(file).name} beside it, which says what it takes and gives: write both with export.py"
        )
    description.check(file)
    values = description.to_json()
    _check_runnable(file, values)
    return values


def _check_runnable(file: Path, values: dict) -> None:
    kind, given, (name, result) = values["format"], values["input"], next(iter(values["outputs"].items()))
    if kind not in _RUNTIMES:
        raise KerassegError(f"{file} is a {kind}: a browser runs .tflite and .onnx, export it with --format tflite or onnx")
    if given["shape"][-1] != 3:
        raise KerassegError(f"{file} takes images of {given['shape'][-1]} channels: a page has photographs to give, RGB")
    if given["shape"][0] not in (1, None):
        raise KerassegError(f"{file} takes {given['shape'][0]} images at a time, a page has one: export it with --batch-size 1")
    bad = [f"input {given['name']} as {given['type']}"] if given["type"] not in _TYPES[kind] else []
    bad += [f"output {name} as {result['type']}"] if result["type"] not in _RESULT_TYPES[kind] else []
    if bad:
        raise KerassegError(
            f"{file} has {' and '.join(bad)}, which the browser's runtime does not pass on: export it with --quantize int8-float-io"
            " or --result labels, same arithmetic inside"
        )
    if any(operation.startswith("Flex") for operation in values["operations"]):
        raise KerassegError(
            f"{file} has operations of TensorFlow itself (--select-tf-ops), which no browser runs: export it without"
        )


def _write_vendor_index(vendored: Path) -> None:
    parts = [f"{path.parent.name}/\n{path.read_text()}" for path in sorted(vendored.glob("*/README.txt"))]
    (vendored / "README.txt").write_text("\n".join(parts))


def _write_samples(folder: Path, samples: Sequence[str] | None, description: dict) -> Iterable[dict]:
    """Writes the samples as files that browsers read, and yields what page.json says of each."""
    folder.mkdir()
    for index, (title, image) in enumerate(_samples(samples, description), start=1):
        image.thumbnail((_SAMPLE_SIDE, _SAMPLE_SIDE))
        # Drawings have sharp edges, photographs none that matter.
        path = folder / (f"{index}.png" if samples is None else f"{index}.jpg")
        image.save(path, **({} if samples is None else {"quality": 90}))
        yield {"file": f"samples/{path.name}", "title": title}


def _samples(samples: Sequence[str] | None, description: dict):
    from PIL import Image

    if samples is not None:
        from kerasseg.data import decode_image

        for path in samples:
            yield Path(path).stem, Image.fromarray(decode_image(path))
    elif description["label_table"] == "shapes":
        from kerasseg.cli.demo import drawings

        for index, image in enumerate(drawings(_DRAWINGS, _DRAWING_SIZE), start=1):
            yield f"Drawing {index}", Image.fromarray(image)


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder with the headers that threads need, and quietly."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json"
    }  # fmt: skip

    def end_headers(self):
        """Adds the headers."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        # A page that was built anew shows at once.
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format, *args):
        """Says nothing."""


def make_server(folder, port: int = 0, handler: type[Handler] = Handler) -> ThreadingHTTPServer:
    """Makes a server of a folder, for this machine alone.

    Args:
        folder: What to serve.
        port: 0: any that is free.
        handler: What answers.
    """
    return ThreadingHTTPServer(("127.0.0.1", port), partial(handler, directory=str(folder)))


def main() -> int:
    """Runs `tools/web_page.py` and returns its exit code."""
    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
