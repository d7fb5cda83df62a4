"""push: a saved folder, or a softened model, as a repository of the Hugging Face hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from equidial.adapters._card import CardFacts
from equidial.adapters._files import save_as
from equidial.adapters._folder import CARD_FILE, CERTIFICATE_FILE, read_folder
from equidial.adapters._hub import check_repository, upload
from equidial.adapters._scores import Numbers
from equidial.adapters._state import require_root
from equidial.certificates import Certificate
from equidial.errors import ArgumentError, FileFormatError, explain


def push(
    source: nn.Module | str | os.PathLike[str],
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    private: bool | None = None,
    message: str = "Upload with equidial",
    scores: Numbers | Mapping[str, Numbers] | None = None,
    base_model: str | None = None,
    license: str | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> str:
    """Put a saved folder, or a softened model, on the hub; ``load(base_model, repo_id)`` reads it from there.

    Args:
        source: a folder that :func:`equidial.save` wrote, checked before anything is sent, or a softened model.
        repo_id: ``"user/name"``; made if it does not exist.
        revision: branch to write to, made if need be; ``None``: the main one.
        token: of the hub; ``None``: the one that huggingface_hub knows.
        private: whether a repository made here is private; ``None``: as the account is set.
        message: of the commit.
        scores, base_model, license, image_size: as in :func:`equidial.save`, for a model; a folder has its card.

    Only the four files of the format are sent, whatever else the folder holds. Returns the address of the commit.
    Raises ``HubError`` where the hub cannot be reached or refuses, ``FileFormatError`` for a folder that is not whole,
    ``ArgumentError`` for a name of another form and where huggingface_hub is missing, ``StateError`` for a plain model.
    """
    check_repository(repo_id)
    facts = CardFacts.of(repo_id, scores, base_model, license)
    if isinstance(source, nn.Module):
        require_root(source, "push")
        with tempfile.TemporaryDirectory() as folder:
            save_as(source, Path(folder), facts, image_size)
            return upload(Path(folder), repo_id, revision, token, private, message)
    given = {"scores": scores, "base_model": base_model, "license": license, "image_size": image_size}
    surplus = [name for name, value in given.items() if value is not None]
    if surplus:
        raise ArgumentError(
            explain("a folder with the card that save wrote", f"{', '.join(surplus)} besides", "give them to save")
        )
    folder = Path(source)
    read_folder(folder).check_contents()
    for name in (CERTIFICATE_FILE, CARD_FILE):
        if not (folder / name).is_file():
            raise FileFormatError(
                explain(
                    f"a folder written by equidial.save, with {name}", f"{folder} without it", "save the model anew"
                )
            )
    Certificate.load(folder / CERTIFICATE_FILE)
    return upload(folder, repo_id, revision, token, private, message)
