"""Downloads a model to this machine before a server is started, so that its start-up time counts only loading."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pipeline.serving.model_check import check_files, check_model
from schemas.errors import ConfigError
from schemas.hosting import ServerConfig
from schemas.os_errors import refused_by_system

_NEEDED: Final = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken", "*.py")
_NOT_NEEDED: Final = ("original/*", "onnx/*", "openvino/*")


def fetch_model(config: ServerConfig) -> Path:
    """The directory of the model's files. Downloads those that Hugging Face's cache lacks; a local directory is only checked.

    Raises ConfigError if there is no such repository or revision, access is denied, or the Hub cannot be reached.
    """
    check_model(config)
    if Path(config.model).exists():
        return Path(config.model)
    from huggingface_hub import errors as hub  # noqa: PLC0415
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (reads HF_* when imported)

    what = f"{config.model} at {config.revision}" if config.revision else config.model
    try:
        directory = snapshot_download(
            config.model, revision=config.revision, allow_patterns=list(_NEEDED), ignore_patterns=list(_NOT_NEEDED)
        )
    except hub.GatedRepoError as error:
        raise ConfigError(
            f"{what}: the Hub requires that its terms are accepted",
            f"accept them at https://huggingface.co/{config.model} and set HF_TOKEN",
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise ConfigError(
            f"{what}: the Hub has no such model, or does not show it to you",
            "check `server.model`; for a private one set HF_TOKEN",
        ) from error
    except hub.RevisionNotFoundError as error:
        raise ConfigError(f"{what}: there is no such revision", "check `server.revision`: a branch, tag or commit") from error
    except hub.LocalEntryNotFoundError as error:
        raise ConfigError(
            f"{what}: not in the cache, and the Hub is offline or cannot be reached",
            "unset HF_HUB_OFFLINE and check the network (https_proxy, HF_ENDPOINT); or run `mbeir-cot teacher fetch CONFIG` "
            "where there is one with the same HF_HOME; or give a local directory as `server.model`",
        ) from error
    except OSError as error:  # the Hub's HTTP errors too, and a full disk
        refused = refused_by_system(error)
        raise ConfigError(
            f"{what}: cannot be fetched ({refused.cause if refused else f'{type(error).__name__}: {error}'})",
            f"{refused.remedy if refused else 'check the network'}; then run the same command again: downloaded files are kept",
        ) from error
    check_files(config, Path(directory))
    return Path(directory)
