"""Every kind of file that saescope reads, damaged at random, and what a command does with it.

`corpus` writes one valid file of each kind; `mutated` changes a file, with a seed; `try_file` runs
the command that reads it in a forked child with limits, and says what went wrong.
"""

import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tiny

SECONDS = 10
MEMORY = 10**9
_WRITTEN_FILE = 64 * 2**20
_NUMBERS = (0, -1, 1, 2**16, 2**24, 10**9, 2**31, 2**63, 10**30, 10**400, -(2**63), 1e308, 1e-320)
_VALUES: tuple[Any, ...] = (
    *_NUMBERS, float("nan"), float("inf"), True, None, "", "x", [], {}, [None], {"a": {}},
    "../../up", "/etc/passwd", "\x1b[31mred", "\u202e", "[/]", "\x00", "a\nb", "名" * 300,
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A file in a folder, and the command that reads it; the folder is copied for each change."""

    name: str
    file: str
    command: Sequence[str]

    def __str__(self) -> str:
        return self.name


# --- valid files


def corpus(folder: Path) -> list[Kind]:
    """Write a folder with a file of every kind."""
    model = tiny.save_model(folder / "model", layers=2)
    tiny.save_model(folder / "sharded", layers=2, shard_size="20KB")
    (model / "generation_config.json").write_text('{"do_sample": false, "eos_token_id": [1, 2]}')
    pair = ["--model", "model", "--sae", "sae", "--layers", "1", "--offline"]
    scan = ["scan", "hi you", *pair]
    steer = ["steer", "hi", "--max-new-tokens", "1", *pair]
    _write_saes(folder)
    _write_prompts(folder)
    _write_directions(folder)
    (folder / "saescope.toml").write_text("n_top = 3\nlayers = '1'\n")
    chat = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\\n{% endfor %}"
    (model / "chat_template.jinja").write_text(chat)
    of_model = {
        "chat_template.jinja": [*steer, "--edit", "1/3 scale 1", "--chat"],
        "config.json": scan,
        "generation_config.json": [*steer, "--edit", "1/3 scale 1"],
        "tokenizer.json": scan,
        "tokenizer_config.json": scan,
        "model.safetensors": scan,
    }
    kinds = [Kind(name, f"model/{name}", command) for name, command in of_model.items()]
    sharded = ["scan", "hi you", "--model", "sharded", *pair[2:]]
    kinds.append(Kind("index", "sharded/model.safetensors.index.json", sharded))
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "x", "r": 4}
    shutil.copytree(model, folder / "adapted")
    (folder / "adapted" / "adapter_config.json").write_text(json.dumps(adapter))
    adapted = ["scan", "hi you", "--model", "adapted", *pair[2:]]
    kinds.append(Kind("adapter", "adapted/adapter_config.json", adapted))
    for name, (sae, file) in _SAE_FILES.items():
        command = ["scan", "hi you", "--model", "model", "--sae", sae, "--layers", "1"]
        kinds.append(Kind(name, f"{sae}/{file}", command))
    for suffix in ("jsonl", "json", "csv", "tsv", "parquet"):
        kinds.append(Kind(suffix, f"p.{suffix}", ["profile", f"p.{suffix}", *pair]))
    kinds.append(Kind("txt", "sets/a.txt", ["profile", "sets", *pair]))
    kinds.append(Kind("edits", "edits.toml", [*steer, "--edits", "edits.toml"]))
    kinds.append(Kind("settings", "saescope.toml", scan))
    for suffix in ("safetensors", "npz", "npy", "pt", "gguf"):
        edit = f"v.{suffix}#direction.1@1 add 1"
        if suffix in ("npy", "pt"):
            edit = f"v.{suffix}@1 add 1"
        kinds.append(Kind(f"direction.{suffix}", f"v.{suffix}", [*steer, "--edit", edit]))
    return kinds


_SAE_FILES = {
    "qwen-scope": ("sae", "layer1.sae.pt"),
    "qwen-scope config": ("sae", "cfg.json"),
    "saelens": ("saelens", "blocks.1.hook_resid_post/sae_weights.safetensors"),
    "saelens config": ("saelens", "blocks.1.hook_resid_post/cfg.json"),
    "sparsify": ("sparsify", "layers.1/sae.safetensors"),
    "sparsify config": ("sparsify", "layers.1/cfg.json"),
    "dictionary": ("dictionary", "ae.pt"),
    "dictionary config": ("dictionary", "config.json"),
    "gemma": ("gemma", "layer_1/width_256/average_l0_8/params.npz"),
    "old torch": ("old", "layer1.sae.pt"),
}


def with_run(folder: Path) -> list[Kind]:
    """Add a stored run to the folder, whose files `contrast`, `report` and `verify` read."""
    from stored import write_run

    random = np.random.default_rng(0)
    lengths = {"a": [5] * 12, "b": [6] * 12}
    fires = {1: random.random((12 * 11, 8)) < 0.3}
    write_run(folder / "run", lengths, fires)
    names = sorted(path.name for path in (folder / "run").iterdir())
    verbs = (["contrast", "run"], ["verify", "run"], ["report", "run"])
    return [Kind(f"run {name} {verb[0]}", f"run/{name}", verb) for name in names for verb in verbs]


def _write_saes(folder: Path) -> None:
    tiny.save_sae(folder / "sae", layers=(1,))
    tiny.save_saelens(folder / "saelens", layers=(1,))
    tensors = tiny.sae_tensors()
    linear = {"encoder.weight": tensors["W_enc"], "encoder.bias": tensors["b_enc"]}
    b_dec, w_dec = tensors["b_dec"], tensors["W_dec"]
    from safetensors.torch import save_file

    (folder / "sparsify" / "layers.1").mkdir(parents=True)
    state = linear | {"W_dec": w_dec.T.contiguous(), "b_dec": b_dec}
    save_file(state, folder / "sparsify" / "layers.1" / "sae.safetensors")
    config = {"d_in": 32, "k": 8, "expansion_factor": 8}
    (folder / "sparsify" / "layers.1" / "cfg.json").write_text(json.dumps(config))
    (folder / "dictionary").mkdir()
    state = linear | {"decoder.weight": w_dec, "b_dec": b_dec, "threshold": torch.tensor(-1.0)}
    torch.save(state | {"k": torch.tensor(8)}, folder / "dictionary" / "ae.pt")
    trainer = {"dict_class": "BatchTopKSAE", "layer": 1, "k": 8, "dict_size": 256}
    about = {"trainer": trainer, "buffer": {"io": "out"}}
    (folder / "dictionary" / "config.json").write_text(json.dumps(about))
    gemma = folder / "gemma" / "layer_1" / "width_256" / "average_l0_8"
    gemma.mkdir(parents=True)
    arrays = tensors | {"W_enc": tensors["W_enc"].T, "W_dec": w_dec.T, "threshold": torch.ones(256)}
    np.savez(gemma / "params.npz", **{key: np.asarray(v.contiguous()) for key, v in arrays.items()})
    (folder / "old").mkdir()
    torch.save(tensors, folder / "old" / "layer1.sae.pt", _use_new_zipfile_serialization=False)
    (folder / "old" / "cfg.json").write_text('{"k": 8}')


def _write_prompts(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"id": f"{s}{n}", "set": s, "text": f"{word} dog {n} sleeps", "split": "discovery"}
        for s, word in (("a", "The red"), ("b", "An old"))
        for n in range(3)
    ]
    (folder / "p.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "p.json").write_text(json.dumps(rows))
    for suffix, mark in (("csv", ","), ("tsv", "\t")):
        lines = [mark.join(rows[0]), *(mark.join(row.values()) for row in rows)]
        (folder / f"p.{suffix}").write_text("\n".join(lines) + "\n")
    pq.write_table(pa.Table.from_pylist(rows), folder / "p.parquet")
    (folder / "sets").mkdir()
    for name in ("a", "b"):
        (folder / "sets" / f"{name}.txt").write_text(f"{name} red dog\n{name} old cat\n")


def _write_directions(folder: Path) -> None:
    from safetensors.numpy import save_file

    vector = np.linspace(-1, 1, 32, dtype="f4")
    save_file({"direction.1": vector}, folder / "v.safetensors")
    np.savez(folder / "v.npz", **{"direction.1": vector})
    np.save(folder / "v.npy", vector)
    torch.save(torch.from_numpy(vector), folder / "v.pt")
    (folder / "v.gguf").write_bytes(_gguf(vector))
    (folder / "edits.toml").write_text(
        'model = "model"\nsae = "sae"\nd_model = 32\n\n'
        '[[edit]]\nfeature = "1/3"\nop = "scale"\nstrength = 1.5\n'
        '\n[[edit]]\ndirection = "v.safetensors#direction.1"\nlayer = 1\nop = "add"\n'
        "strength = 0.5\n"
    )


def _gguf(vector: "np.ndarray[Any, Any]") -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2)
    head += text("general.architecture") + struct.pack("<I", 8) + text("controlvector")
    head += text("controlvector.layer_count") + struct.pack("<II", 4, 2)
    head += text("direction.1") + struct.pack("<IQIQ", 1, len(vector), 0, 0)
    return head + bytes(-len(head) % 32) + vector.tobytes()


# --- changes


def mutated(data: bytes, name: str, rng: random.Random) -> bytes:
    """A file's bytes with one to three changes; those of JSON and text keep their form often."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        changes: list[Callable[[bytes, random.Random], bytes]] = [
            _flip, _cut, _drop, _repeat, _insert, _large_integer,
        ]  # fmt: skip
        if name.endswith((".json", ".jsonl")):
            changes = [*changes, *[_json_value] * 12, _deep]
        if name.endswith((".toml", ".jinja", ".csv", ".tsv", ".txt", ".jsonl")):
            changes = [*changes, *[_text_number] * 4, *[_text_piece] * 4]
        if name.endswith(".safetensors"):
            changes = [*changes, *[_header_value] * 8]
        data = rng.choice(changes)(data, rng)
    return data


def _at(data: bytes, rng: random.Random) -> int:
    """A place: often among the first bytes or the last, where headers and directories lie."""
    part = rng.random()
    if part < 0.35:
        return rng.randrange(min(len(data), 300) or 1)
    if part < 0.6:
        return max(0, len(data) - 1 - rng.randrange(min(len(data), 400) or 1))
    return rng.randrange(len(data) or 1)


def _flip(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 4, 16))):
        if changed:
            changed[_at(data, rng)] = rng.randrange(256)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: _at(data, rng)]


def _drop(data: bytes, rng: random.Random) -> bytes:
    at = _at(data, rng)
    return data[:at] + data[at + rng.choice((1, 8, 100, 4096)) :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    at, size = _at(data, rng), rng.choice((1, 8, 100, 4096))
    return data[:at] + data[at : at + size] * rng.choice((2, 50)) + data[at:]


def _insert(data: bytes, rng: random.Random) -> bytes:
    at = _at(data, rng)
    return data[:at] + rng.randbytes(rng.choice((1, 8, 64))) + data[at:]


def _large_integer(data: bytes, rng: random.Random) -> bytes:
    at, width = _at(data, rng), rng.choice((2, 4, 8))
    number = rng.choice((0, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 10**9 % 2 ** (8 * width)))
    return data[:at] + number.to_bytes(width, "little") + data[at + width :]


def _json_value(data: bytes, rng: random.Random) -> bytes:
    """Replace one value of a JSON text, or of one of its lines, by another."""
    lines = data.split(b"\n")
    index = rng.randrange(len(lines)) if len(lines) < 12 and b"\n{" in data else None
    try:
        value = json.loads(data if index is None else lines[index])
    except (ValueError, RecursionError):
        return _flip(data, rng)
    changed = json.dumps(_replaced(value, rng)).encode()
    if index is None:
        return changed
    return b"\n".join([*lines[:index], changed, *lines[index + 1 :]])


def _replaced(value: Any, rng: random.Random) -> Any:
    inner = value and isinstance(value, dict | list) and rng.random() < 0.85
    if not inner:
        return rng.choice(_VALUES)
    if isinstance(value, dict):
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {name: item for name, item in value.items() if name != key}
        if rng.random() < 0.05:
            return value | {str(rng.choice(_VALUES)): rng.choice(_VALUES)}
        return value | {key: _replaced(value[key], rng)}
    at = rng.randrange(len(value))
    return [*value[:at], _replaced(value[at], rng), *value[at + 1 :]]


def _header_value(data: bytes, rng: random.Random) -> bytes:
    """Replace one value of a safetensors header, whose length is kept true."""
    size = int.from_bytes(data[:8], "little")
    header = _json_value(data[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + size :]


def _deep(data: bytes, rng: random.Random) -> bytes:
    at, n = _at(data, rng), rng.choice((100, 5000, 200_000))
    return data[:at] + rng.choice((b"[", b'{"a":')) * n + data[at:]


def _text_number(data: bytes, rng: random.Random) -> bytes:
    places = [n for n, byte in enumerate(data) if 48 <= byte <= 57]
    if not places:
        return _flip(data, rng)
    at = rng.choice(places)
    return data[:at] + str(rng.choice(_NUMBERS)).encode() + data[at + 1 :]


def _text_piece(data: bytes, rng: random.Random) -> bytes:
    at = _at(data, rng)
    piece = str(rng.choice(_VALUES)).encode("utf-8", "surrogatepass")
    return data[:at] + piece + data[at:]


# --- what a command does with it


@dataclass(frozen=True)
class Outcome:
    """How a command ended; `faults` says what must not happen."""

    code: int
    out: str
    err: str
    seconds: float
    faults: tuple[str, ...]


def try_file(kind: Kind, valid: Path, data: bytes, work: Path) -> Outcome:
    """Put changed bytes in a copy of the folder and run the command that reads them there."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(valid, work / "in")
    (work / "in" / kind.file).write_bytes(data)
    return run_limited(kind.command, work)


def run_limited(command: Sequence[str], work: Path) -> Outcome:
    """Run a command in `work`/in, in a child with limits of time and memory."""
    (work / "mine").write_text("mine")
    begun = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _child(command, work)
    killed, shared = "", _resident("self")
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() - begun > SECONDS:
            killed = f"no answer in {SECONDS} s"
        elif _resident(str(child)) > shared + MEMORY:
            killed = f"over {MEMORY / 1e9:g} GB"
        if killed:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            status = 0
            break
        time.sleep(0.005)
    seconds = time.monotonic() - begun
    out, err, seen = ((work / name).read_text("utf-8", "replace") for name in ("out", "err", "log"))
    for name in ("out", "err", "log"):
        (work / name).unlink()
    code = os.waitstatus_to_exitcode(status)
    faults = tuple(_faults(code, out, err, killed, seen, work))
    return Outcome(code, out, err, seconds, faults)


def _resident(process: str) -> int:
    try:
        pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * resource.getpagesize()


def _child(command: Sequence[str], work: Path) -> None:
    code = 70
    try:
        os.setsid()
        os.chdir(work / "in")
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(work / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
        log = os.open(work / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        torch.set_num_threads(1)
        os.environ["XDG_CONFIG_HOME"] = str(work / "config")
        resource.setrlimit(resource.RLIMIT_FSIZE, (_WRITTEN_FILE, _WRITTEN_FILE))
        sys.addaudithook(_Watch(log, work))
        from saescope.surfaces.cli import main

        sys.argv = ["saescope", *command]
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


class _Watch:
    """Writes down what a command does to files outside its folder, and code it runs from there."""

    def __init__(self, log: int, work: Path) -> None:
        self.log = log
        self.work = str(work / "in")
        self.allowed = (
            self.work,
            os.environ.get("SAESCOPE_CACHE", self.work),
            "/dev/null",
            "/proc",
        )

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | bytes) and self._writes(args):
            self._note_outside("writes", args[0])
        elif event in ("os.remove", "os.rmdir", "os.mkdir", "os.rename", "shutil.rmtree"):
            self._note_outside(event, args[0])
        elif event in ("os.system", "os.exec", "os.posix_spawn", "socket.connect") or (
            event == "subprocess.Popen" and "template_worker" not in repr(args)
        ):
            self._note(f"{event} {args}")
        elif event == "exec" and str(getattr(args[0], "co_filename", "")).startswith(self.work):
            self._note(f"runs {args[0].co_filename}")

    def _writes(self, args: tuple[Any, ...]) -> bool:
        flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))

    def _note_outside(self, what: str, path: Any) -> None:
        if isinstance(path, int) or path is None:
            return
        place = os.path.abspath(os.fsdecode(path))
        if not place.startswith(self.allowed) and "/saescope-" not in place:
            self._note(f"{what} {place}")

    def _note(self, text: str) -> None:
        os.write(self.log, (text + "\n").encode("utf-8", "replace"))


def _faults(code: int, out: str, err: str, killed: str, seen: str, work: Path) -> list[str]:
    """What a command must not do, whatever its file holds."""
    faults = [killed] if killed else []
    lines = [line for line in err.splitlines() if line.strip()]
    reasons = [
        line
        for line in lines
        if line.startswith("saescope: ") and not line.startswith("saescope: warning:")
    ]
    if not killed and code not in (0, 2):
        faults.append(f"exit code {code}: {' '.join(lines[-3:])}")
    # The tokenizers library prints keys of a tokenizer.json that it does not know.
    out = re.sub(r"Ignored unknown kwarg option .*\n", "", out)
    if code == 2 and (len(reasons) != 1 or out):
        faults.append(f"{len(reasons)} reasons, {len(out)} characters on stdout")
    if "Traceback" in err:
        faults.append(f"a traceback: {lines[-1]}")
    if any("SAESCOPE_DEBUG" in line for line in reasons):
        faults.append(f"an unexpected error: {reasons[-1]}")
    if any(not c.isprintable() and c not in "\n" for c in out + err):
        faults.append("control characters on the terminal")
    if seen:
        faults.append(f"outside: {seen.splitlines()[0]}")
    if (work / "mine").read_text() != "mine":
        faults.append("a file outside was changed")
    return faults
