"""The two files of a saved folder that a model is rebuilt from: written, read, and refused as documents.

What is checked here needs no model: version, keys, kinds of values, names of tensors, hashes of contents. The format is
specified in docs/files.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from equidial.adapters._config import SoftEquivarianceConfig
from equidial.adapters._state import tensor_hash
from equidial.certificates import Certificate
from equidial.errors import EquidialError, FileFormatError, explain

CONFIG_FILE = "soft_equivariance_config.json"
TENSOR_FILE = "soft_equivariance.safetensors"
CERTIFICATE_FILE = "certificate.json"
CARD_FILE = "README.md"
FILES = (CONFIG_FILE, TENSOR_FILE, CERTIFICATE_FILE, CARD_FILE)
FORMAT_VERSION = 1
DIAL_BUFFERS = ("threshold", "budget", "softness", "reference")
LEARNED = "learned"  # beside the buffers of a dial that is trained

_REQUIRED_KEYS = {"format_version", "config", "tensors", "base"}
# "stored" is missing in folders written before the contents were hashed; "library_version" is for information
_OPTIONAL_KEYS = {"stored", "library_version"}
_NO_DIGEST = "0" * 64
_BASE_KEYS = {"class", "keys", "unchanged"}
_CHECKPOINTS = ("model.safetensors", "pytorch_model.bin", "adapter_config.json")
_STORED_KEYS = {"document", "tensors"}
_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class SavedFolder:
    """What a folder says: its configuration, a row per constrained tensor, its base, and its tensors by key."""

    config: SoftEquivarianceConfig
    rows: dict[str, dict[str, Any]]
    base: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    hashes: dict[str, str]
    edited: str | None

    @property
    def changed(self) -> dict[str, torch.Tensor]:
        """The tensors that take the place of the base model's, by plain name."""
        return {name: t for name, t in self.tensors.items() if not name.startswith(("dial/", "probe/"))}

    def check_contents(self) -> None:
        """Raise ``FileFormatError`` where a file is not what was saved; after checks that say more of what is wrong."""
        altered = [name for name, value in self.hashes.items() if tensor_hash(self.tensors[name]) != value]
        if altered:
            raise FileFormatError(
                explain(
                    f"the tensors of {TENSOR_FILE} as they were saved",
                    f"{len(altered)} with other contents, e.g. {', '.join(altered[:3])}",
                    "copy the file again: it is damaged, or was edited",
                )
            )
        if self.edited is not None:
            raise FileFormatError(
                explain(
                    f"{CONFIG_FILE} as it was saved",
                    self.edited,
                    "copy the whole folder again; to change a dial: load, set_dial, save",
                )
            )


def write_folder(folder: Path, document: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Write configuration and tensors with the hashes of both; the folder is made if need be."""
    hashes = {name: tensor_hash(tensor) for name, tensor in tensors.items()}
    document = document | {"stored": {"document": _NO_DIGEST, "tensors": hashes}}
    content = (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
    content = content.replace(_NO_DIGEST.encode(), _digest(content, _NO_DIGEST).encode())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_bytes(content)
    save_file(tensors, folder / TENSOR_FILE, metadata={"format": "pt"})


def read_folder(folder: Path) -> SavedFolder:
    """Read a folder and check its form; raises ``FileFormatError`` for one that is incomplete, damaged or of another
    format. Whether it is what was saved is asked last, by :meth:`SavedFolder.check_contents`."""
    _check_present(folder)
    document, content = _read_json(folder)
    _check_document(document)
    tensors = _read_tensors(folder / TENSOR_FILE)
    _check_names(document, tensors)
    _check_dials(document["tensors"], tensors)
    edited, stored = None, document.get("stored")
    if stored is not None and stored["document"] != _digest(content, stored["document"]):
        edited = f"other contents: it was edited after saving{_hint(folder, document, tensors)}"
    hashes = {} if stored is None else stored["tensors"]
    config = _configuration(document["config"])
    return SavedFolder(config, document["tensors"], document["base"], tensors, hashes, edited)


def _digest(content: bytes, own: str) -> str:
    """SHA-256 of the file with zeros in place of the digits of its own hash; git may have rewritten line ends."""
    plain = content.replace(own.encode(), _NO_DIGEST.encode()).replace(b"\r\n", b"\n")
    return hashlib.sha256(plain).hexdigest()


def _check_present(folder: Path) -> None:
    for name in (CONFIG_FILE, TENSOR_FILE):
        if (folder / name).is_file():
            continue
        checkpoint = next((file for file in _CHECKPOINTS if (folder / file).is_file()), None)
        got, todo = f"{folder} without it", "check the path"
        if checkpoint is not None and name == CONFIG_FILE:
            got, todo = (
                f"{folder} without it, but with {checkpoint}",
                "that is a checkpoint: load it as its library says",
            )
        elif (folder / "metrics.jsonl").is_file():
            todo = "give the folder of one dial position of this run, e.g. softness-0.5-seed-0"
        raise FileFormatError(explain(f"a folder written by equidial.save, with {name}", got, todo))


def _read_json(folder: Path) -> tuple[dict[str, Any], bytes]:
    content = (folder / CONFIG_FILE).read_bytes()
    try:
        document = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise _damaged(CONFIG_FILE, error) from error
    version = document.get("format_version") if isinstance(document, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        got, todo = repr(version), "use a folder that equidial.save wrote"
        if not isinstance(document, dict):
            got = f"a {type(document).__name__}"
        elif type(version) is int and version > FORMAT_VERSION:
            got = f"{version}, written by equidial {document.get('library_version', 'of unknown version')}"
            todo = "upgrade equidial: this folder is newer than this version can read"
        raise FileFormatError(explain(f"format version {FORMAT_VERSION} in {CONFIG_FILE}", got, todo))
    return document, content


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise _damaged(path.name, error) from error


def _damaged(name: str, error: Exception) -> FileFormatError:
    return FileFormatError(explain(f"a readable {name}", str(error), "copy the folder again: it is damaged"))


def _check_document(document: dict[str, Any]) -> None:
    unknown = sorted(set(document) - _REQUIRED_KEYS - _OPTIONAL_KEYS)
    missing = sorted(_REQUIRED_KEYS - set(document))
    for name, keys in (("base", _BASE_KEYS), ("stored", _STORED_KEYS)):
        part = document.get(name)
        if isinstance(part, dict):
            unknown += sorted(f"{name}.{key}" for key in set(part) - keys)
            missing += sorted(f"{name}.{key}" for key in keys - set(part))
    if unknown or missing:
        raise FileFormatError(
            explain(
                f"the keys {sorted(_REQUIRED_KEYS)}",
                f"unknown {unknown}, missing {missing}",
                "use the version that wrote the file: ignoring a key would change the model",
            )
        )
    base, stored = document["base"], document.get("stored", {"document": _NO_DIGEST, "tensors": {}})
    kinds = {
        "config": isinstance(document["config"], dict),
        "tensors": _maps(document["tensors"], lambda row: isinstance(row, dict)),
        "base": isinstance(base, dict)
        and isinstance(base["class"], str)
        and isinstance(base["keys"], list)
        and all(isinstance(key, str) for key in base["keys"])
        and _maps(base["unchanged"], _is_hash),
        "stored": isinstance(stored, dict) and _is_hash(stored["document"]) and _maps(stored["tensors"], _is_hash),
    }
    wrong = [key for key, right in kinds.items() if not right]
    if wrong:
        raise FileFormatError(
            explain(
                f"{CONFIG_FILE} as docs/files.md says", f"another kind of value at {wrong}", "copy the folder again"
            )
        )


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _maps(value: object, right: Any) -> bool:
    return isinstance(value, dict) and all(right(item) for item in value.values())


def _check_names(document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """The document tells which tensors there are: what the base does not hold, dials and probes."""
    wanted = set(document["base"]["keys"]) - set(document["base"]["unchanged"])
    for name in document["tensors"]:
        wanted |= {f"probe/{name}", *(f"dial/{name}/{buffer}" for buffer in DIAL_BUFFERS)}
    hashed = set(document["stored"]["tensors"]) if "stored" in document else wanted
    missing = sorted((wanted | hashed) - set(tensors))
    trained = {f"dial/{name}/{LEARNED}" for name in document["tensors"]}
    extra = sorted((set(tensors) | hashed) - wanted - trained)
    if missing or extra:
        raise FileFormatError(
            explain(
                f"in {TENSOR_FILE} the changed and constrained tensors that {CONFIG_FILE} names, with dials and probes",
                f"missing {missing[:4]}, besides {extra[:4]}",
                "copy the whole folder again: the file was edited, or comes from another save",
            )
        )


def _check_dials(rows: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    for name in rows:
        for buffer in (*DIAL_BUFFERS, LEARNED):
            stored = tensors.get(f"dial/{name}/{buffer}")
            if stored is None:
                continue  # the buffers are there, see _check_names
            is_number = stored.shape == (1,) and stored.dtype == torch.float64
            value = float(stored) if is_number else math.nan
            unset = math.isnan(value) and buffer == "softness"  # another dial set the threshold
            highest = {"softness": 1.0, "threshold": math.inf}.get(buffer, sys.float_info.max)
            trained = buffer == LEARNED and math.isfinite(value)  # a trained number may leave [0, 1], its dial does not
            if not is_number or not (unset or trained or 0 <= value <= highest):
                raise FileFormatError(
                    explain(
                        f"one {'finite float64 number' if buffer == LEARNED else 'float64 number >= 0'} "
                        f"for dial/{name}/{buffer}",
                        f"{stored.dtype} of shape {tuple(stored.shape)}, {value:g}",
                        "copy the file again: it is damaged, or was edited",
                    )
                )


def _configuration(data: Mapping[str, Any]) -> SoftEquivarianceConfig:
    try:
        return SoftEquivarianceConfig.from_dict(data)
    except FileFormatError:
        raise
    except (EquidialError, TypeError, AttributeError) as error:
        raise FileFormatError(
            explain(
                "a configuration that this version can build",
                f"{type(error).__name__}: {error}",
                "use the version of equidial that wrote the folder",
            )
        ) from error


def _hint(folder: Path, document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """What the other files of the folder say otherwise, in words; nothing where they agree."""
    config, found = document["config"], []
    try:
        groups = sorted({row.group for row in Certificate.load(folder / CERTIFICATE_FILE)})
    except (EquidialError, OSError):
        groups = []
    if groups and groups != [config.get("group")]:
        found.append(f"group {config.get('group')!r}, certified was {', '.join(groups)}")
    softness = sorted({f"{float(tensors[f'dial/{name}/softness'].flatten()[0]):g}" for name in document["tensors"]})
    asked = config.get("softness")
    if isinstance(asked, int | float) and not config.get("softness_pattern") and softness != [f"{asked:g}"]:
        found.append(f"softness {asked:g}, the dials stand at {', '.join(softness)}")
    return f" ({'; '.join(found)})" if found else ""
