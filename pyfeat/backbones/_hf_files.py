"""Files of a model in transformers' layout: a folder, or a repository of the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from pyfeat._identity import canonical_json
from pyfeat.backbones._pretrained import Pretrained, explain_missing_weights

TEXT_HINT = 'pip install "pyfeat[text]"'
# What says who wrote a configuration, not what the network computes.
_BOOKKEEPING = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}


def import_transformers(name: str) -> Any:
    """Return the package transformers.

    Raises
    ------
    ImportError
        If it is missing.
    """
    try:
        import transformers
    except ImportError as error:
        missing = (error.name or "transformers").partition(".")[0]
        raise ImportError(f"{name} needs {missing}: {TEXT_HINT}") from error
    return transformers


def place_of(name: str) -> str:
    """Return the absolute path of a folder, and the name of a repository as it is."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def without_path(found: Pretrained, place: str) -> Pretrained:
    """Return what a folder holds under a name that says what it is, not where: folders move.

    Models of a hub keep their names.
    """
    if not Path(place).is_dir():
        return found
    prefix, _, rest = found.name.partition("/")
    _, mark, part = rest.partition("#")
    kind = found.architecture.partition(":")[0].rpartition("/")[2]  # the class in transformers
    return replace(found, name=f"{prefix}/{kind}{mark}{part}", source="folder")


def find_file(place: str, file: str) -> Path | None:
    """Return the path of a file of a model, downloading it if need be; None if it has none.

    Raises
    ------
    OSError
        If it can neither be downloaded nor is in the cache.
    """
    if Path(place).is_dir():
        local = Path(place) / file
        return local if local.is_file() else None
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    with reading(place):
        try:
            return Path(hf_hub_download(place, file))
        except LocalEntryNotFoundError:
            if try_to_load_from_cache(place, file) is _CACHED_NO_EXIST:
                return None
            raise
        except EntryNotFoundError:
            return None


def read_json(place: str, file: str) -> Any:
    """Return the content of a JSON file of a model, None if it has none.

    Raises
    ------
    OSError
        If it cannot be downloaded, read or parsed.
    """
    path = find_file(place, file)
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(f"{path} must be JSON, got {error}") from error


def load_model(auto: Any, place: str, name: str) -> tuple[Any, set[str]]:
    """Return a model of transformers and the names of the weights that its files do not have.

    Parameters
    ----------
    auto : class
        With `from_pretrained`.
    place : str
        As `place_of` returns it.
    name : str
        For messages.

    Raises
    ------
    OSError
        If weights can neither be read from the cache nor downloaded.
    ValueError
        If the model needs code of its own, or transformers does not know it.

    Notes
    -----
    Weights are safetensors files or, where there are none, `torch.load(weights_only=True)`: no
    pickle is executed. Code that lies beside the weights is never run.
    """
    with quiet(), reading(place):
        try:
            model, info = auto.from_pretrained(
                place, trust_remote_code=False, output_loading_info=True
            )
        except (ImportError, KeyError, ValueError) as error:
            rule = "be one that transformers can load without code from the hub"
            raise ValueError(f"{name} must {rule}, got {first_line(error)}") from error
    return model, set(info["missing_keys"])


def first_line(error: Exception) -> str:
    """Return the kind of an error, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def check_complete(missing: set[str], name: str) -> None:
    """Raise ValueError if weights are missing: transformers would fill them with random numbers."""
    if missing:
        got = f"{len(missing)} missing ones, such as {min(missing)}"
        raise ValueError(f"weights of {name} must be complete, got {got}")


def reading(place: str) -> Any:
    """Return a block in which a failure to fetch or read becomes one `OSError`."""
    from huggingface_hub.constants import HF_HUB_CACHE

    is_folder = Path(place).is_dir()
    address = f"the folder {place}" if is_folder else f"huggingface.co/{place}"
    return explain_missing_weights(place, address, HF_HUB_CACHE)


def architecture_of(model: Any, place: str, *others: Any) -> str:
    """Return what the forward pass is: its class, and a hash of its settings."""
    config = read_json(place, "config.json") or {}
    return f"transformers/{type(model).__name__}:{config_hash(config, *others)}"


def config_hash(config: Mapping[str, Any], *others: Any) -> str:
    """Return a hash of the configuration of a network and of further JSON values."""
    own = {k: v for k, v in config.items() if k not in _BOOKKEEPING}
    return blake3(canonical_json([own, *others]).encode()).hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from drawing bars and telling what it found in a file."""
    logging: Any = import_transformers("hf").utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
