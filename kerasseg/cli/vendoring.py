"""Runtimes for the browser, out of npm packages of one version each, whose bytes are checked."""

import base64
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from kerasseg.errors import KerassegError

# Seconds that npm may take for some ten megabytes over a slow line.
_PATIENCE = 300


class Package(NamedTuple):
    """An npm package, and what of it is used.

    Args:
        name: What the registry calls it.
        version: The one version that the page was tested with.
        integrity: SHA-512 of its tarball, as the registry states it.
        license: `"Apache-2.0"` or `"MIT"`.
        files: Path in the package → path in the runtime's folder.
    """

    name: str
    version: str
    integrity: str
    license: str
    files: Mapping[str, str]

    @property
    def tarball(self) -> str:
        """The file name that `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


_LITERT_VARIANTS = ("litert_wasm_internal", "litert_wasm_compat_internal")
_LITERT_THREADED = "litert_wasm_threaded_internal"
# What LiteRT.js imports by a name that only a bundler would find.
_BARE_IMPORT, _OWN_IMPORT = b'from "@litertjs/wasm-utils"', b'from "./wasm-utils.js"'
_NOTICE = b"// Changed for this page: the import of @litertjs/wasm-utils names the file beside this one.\n"


def runtime_packages(kind: str, *, threads: bool = False) -> tuple[Package, ...]:
    """Says which packages run a format.

    Args:
        kind: `"tflite"` or `"onnx"`.
        threads: Whether the page may use several threads; onnxruntime's one file can anyway.
    """
    if kind == "onnx":
        names = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
        integrity = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
        return (Package("onnxruntime-web", "1.30.0", integrity, "MIT", {f"dist/{name}": name for name in names}),)
    variants = (*_LITERT_VARIANTS, *([_LITERT_THREADED] if threads else []))
    wasm = [f"wasm/{variant}{suffix}" for variant in variants for suffix in (".js", ".wasm")]
    integrity = "sha512-PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkviYGr9OFDL1kCnN4nzWoyJQ=="
    core = Package(
        "@litertjs/core", "2.5.3", integrity, "Apache-2.0", {"dist/index.js": "index.js", **{name: name for name in wasm}}
    )
    integrity = "sha512-4fJiw6tBQnIs+0jH/OQ16nYOiSl8/+zZnn5h2ul8aTKHi05sVqZW580Tmk78pC2kT39A9OYBVdFawteZ/sI1kQ=="
    utilities = Package("@litertjs/wasm-utils", "2.5.3", integrity, "Apache-2.0", {"dist/index.js": "wasm-utils.js"})
    return core, utilities


def vendor(packages: tuple[Package, ...], target: Path, licenses: Path, tarballs: Path | None = None) -> None:
    """Writes the files of a runtime, its licence, and where they come from.

    Args:
        packages: What it consists of.
        target: Its folder; there already is one.
        licenses: Folder with the texts of the licences, `<name>.txt`.
        tarballs: Folder with the packages as `npm pack` writes them; `None` lets npm fetch them, from its cache where it can.
    Raises:
        KerassegError: If npm is missing or fails, or a package is not, byte for byte, the one that was tested.
    """
    with tempfile.TemporaryDirectory() as folder:
        for package in packages:
            path = (tarballs or fetch(package, Path(folder))) / package.tarball
            if not path.is_file():
                raise KerassegError(f"no {package.tarball} in {tarballs}: run `npm pack {package.name}@{package.version}` there")
            check_integrity(path, package)
            _extract(path, package, target)
    for name in {package.license for package in packages}:
        shutil.copyfile(licenses / f"{name}.txt", target / "LICENSE.txt")
    origin = "".join(f"{each.name} {each.version}, {each.license}\n{each.integrity}\n" for each in packages)
    about = (
        "From the npm packages named here, under the licence in LICENSE.txt. What was changed is said in the file's first line.\n\n"
    )
    (target / "README.txt").write_text(about + origin)


def check_integrity(path: Path, package: Package) -> None:
    """Compares a tarball with what the registry stated when the page was tested.

    Raises:
        KerassegError: If it is another.
    """
    found = "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != package.integrity:
        raise KerassegError(
            f"{path} is not {package.name} {package.version} as it was published (its SHA-512 is {found[7:19]}…, expected "
            f"{package.integrity[7:19]}…): delete it and fetch it anew"
        )


def fetch(package: Package, folder: Path) -> Path:
    """Lets npm write a package's tarball into a folder, from its cache where it can.

    Returns:
        The folder.
    Raises:
        KerassegError: If npm is missing or fails.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise KerassegError(
            f"{package.name} comes from npm, which is not installed: install Node.js, or pass --packages with a folder that has "
            f"{package.tarball}"
        )
    command = [npm, "pack", f"{package.name}@{package.version}", "--prefer-offline", "--silent", "--pack-destination", str(folder)]
    try:
        # Not in the current folder, whose package.json npm would read.
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_PATIENCE, env={**os.environ, "CI": "1"})
    except subprocess.TimeoutExpired as error:
        raise KerassegError(f"npm did not fetch {package.name} within {_PATIENCE} s: try again, or pass --packages") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or ["it says nothing"]
        raise KerassegError(
            f"npm cannot fetch {package.name}@{package.version} ({lines[0].strip()}): try again, or pass --packages"
        )
    return folder


def _extract(path: Path, package: Package, target: Path) -> None:
    with tarfile.open(path) as archive:
        for source, name in package.files.items():
            content = archive.extractfile(f"package/{source}").read()
            if _BARE_IMPORT in content:
                content = _NOTICE + content.replace(_BARE_IMPORT, _OWN_IMPORT)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
