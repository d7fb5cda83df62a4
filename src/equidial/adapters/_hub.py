"""Saved folders on the Hugging Face hub and in its cache; huggingface_hub is imported only where the hub is asked.

Only the four files of the format travel, in both directions: no code, no pickle, no base weights.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from equidial._version import __version__
from equidial.adapters._folder import CONFIG_FILE, FILES
from equidial.errors import ArgumentError, FileFormatError, HubError, explain

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REPOSITORY = re.compile(f"{_PART}/{_PART}")


def find_folder(source: str | os.PathLike[str], revision: str | None, token: str | bool | None) -> Path:
    """The folder that ``source`` names: one that exists here, else a snapshot of the repository of that name.

    A folder in the hub's cache layout (``snapshots/<commit>``, ``refs/<revision>``) stands for its ``revision``,
    ``main`` by default. Raises as :func:`equidial.load`.
    """
    path = Path(source)
    if path.is_dir():
        return _here(path, revision)
    if isinstance(source, str) and not path.exists() and _REPOSITORY.fullmatch(source):
        hub = _huggingface_hub()
        with _asking(source, f"the folder or repository {source!r}"):
            return Path(hub.snapshot_download(source, revision=revision, token=token, allow_patterns=list(FILES)))
    return path  # read_folder says what is missing


def check_repository(repo_id: object) -> str:
    """The name itself; raises ``ArgumentError`` unless it is ``"user/name"``."""
    if not isinstance(repo_id, str) or not _REPOSITORY.fullmatch(repo_id):
        todo = "letters, digits, '-', '_' and '.', as on the hub"
        raise ArgumentError(explain("a repository 'user/name' of the hub", repr(repo_id), todo))
    return repo_id


def upload(
    folder: Path, repo_id: str, revision: str | None, token: str | bool | None, private: bool | None, message: str
) -> str:
    """Make the repository if need be and commit the four files; returns the address of the commit."""
    hub = _huggingface_hub()
    with _asking(repo_id, f"to write to the repository {repo_id!r}"):
        api = hub.HfApi(token=token, library_name="equidial", library_version=__version__)
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message=message,
            revision=revision,
        )
    return str(done.commit_url)


def _here(folder: Path, revision: str | None) -> Path:
    snapshots = folder / "snapshots"
    if (folder / CONFIG_FILE).is_file() or not snapshots.is_dir():
        if revision is not None:
            raise ArgumentError(
                explain("no revision for a plain folder", f"revision={revision!r} for {folder}", "leave revision out")
            )
        return folder
    reference = folder / "refs" / (revision or "main")
    known = sorted(path.name for path in snapshots.iterdir() if path.is_dir())
    if reference.is_file():
        commit = reference.read_text().strip()
    else:
        commit = revision or (known[0] if len(known) == 1 else "main")
    if commit not in known:
        raise FileFormatError(
            explain(
                f"the snapshot {revision or 'main'} in {folder}",
                f"snapshots {', '.join(known) or 'none'}",
                "pass one of them as revision, or fetch it first",
            )
        )
    return snapshots / commit


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ArgumentError(
            explain("huggingface_hub, for repositories of the hub", "not installed", "pip install 'equidial[hf]'")
        ) from error
    return huggingface_hub


_ADVICE = {
    "GatedRepoError": "ask for access on its page, then log in (hf auth login) or pass token=",
    "RepositoryNotFoundError": "check the name; where it is private, log in (hf auth login) or pass token=",
    "RevisionNotFoundError": "check the revision: a branch, a tag or a commit of the repository",
    "LocalTokenNotFoundError": "log in (hf auth login) or pass token=",
}


@contextmanager
def _asking(repo_id: str, what: str) -> Iterator[None]:
    """Whatever the hub's client raises becomes a ``HubError`` that says what to do."""
    try:
        yield
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        todo = "check the network and HF_HUB_OFFLINE, or pass a folder"
        if status in (401, 403):
            todo = f"log in (hf auth login) or pass token= of an account that may do this with {repo_id}"
        todo = next((_ADVICE[cls.__name__] for cls in type(error).__mro__ if cls.__name__ in _ADVICE), todo)
        text = str(error).strip().splitlines()
        raise HubError(explain(what, f"{type(error).__name__}: {text[0] if text else ''}", todo)) from error
