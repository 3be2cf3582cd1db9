"""Errors of the libraries that load a model, as errors that name cause and cure."""

import contextlib
import pickle
from collections.abc import Iterator

from whence.cache import ModelError

PICKLE = "Save it as safetensors, or allow the pickle by name (--allow-pickle, Loading(allow_pickle=True))."


@contextlib.contextmanager
def explained(name: str, part: str) -> Iterator[None]:
    """Errors of the libraries as a ModelError, without their advice to run a model's own code."""
    from safetensors import SafetensorError

    try:
        yield
    except ModelError:
        raise
    except SafetensorError as error:
        cause = f"The weights of {name} are cut or damaged: {error}."
        raise ModelError(cause, "Copy or save the file again.") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"The weights of {name} are a pickle that holds more than tensors, which could run code: it is not read.",
            "Get the model as safetensors.",
        ) from error
    except OSError as error:
        if "safetensors" not in str(error) or part != "weights":
            raise _failed(name, part, error) from error
        raise ModelError(
            f"{name} has no weights in safetensors files.", f"{PICKLE} Or check that the copy is whole."
        ) from error
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{name} needs code of its own (auto_map), which is not run.",
                "Read that code; then allow it by name, or load the model yourself and call Whence from Python.",
            ) from error
        raise _failed(name, part, error) from error


def _failed(name: str, part: str, error: Exception) -> ModelError:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if part == "configuration" and "connect to" in first:
        return ModelError(
            f"There is no folder or file {name!r} here, and the hub, which may have such a model, cannot be reached.",
            "Check the path: it leads to a folder with config.json, written by save_pretrained.",
        )
    return ModelError(
        f"The {part} of {name!r} could not be loaded: {type(error).__name__}: {first}",
        "Give demo, biographies, a folder written by save_pretrained, or a hub name if there is a network.",
    )
