"""Push a released folder to the Hugging Face Hub; nothing else here imports its client."""

import importlib.util
from pathlib import Path

from ebu.errors import EbuError, UsageError
from ebu.run.hints import install_command


def check_push(repository: str) -> None:
    """Raise `UsageError` where a push cannot work: no client, no token, no such name."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UsageError(f"--push needs huggingface-hub: {install_command('hub')}")
    from huggingface_hub import get_token
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except ValueError as error:
        raise UsageError(f"--push {repository}: {_line(error)}") from error
    if get_token() is None:
        raise UsageError("--push needs a token that may write: set HF_TOKEN, or run: hf auth login")


def push_folder(folder: Path, repository: str, *, private: bool) -> str:
    """Upload all files of a folder as one commit, to a new repository if there is none.

    Returns the repository's address. Raises `EbuError`, one line, where the hub refuses or the
    network fails; the same command tries again.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        created = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=f"Release {folder.name}",
            # What a release before this one had and this one has not.
            delete_patterns=["evaluations/*", "*.onnx", "*.mp4"],
        )
    # The errors of the client and of its transport have no base of their own.
    except Exception as error:
        raise EbuError(f"{folder} was not pushed to {repository}: {_line(error)}") from error
    return str(created)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
