"""Pretrained weights: from timm's hub, which may be out of reach, or from a file."""

from __future__ import annotations

import contextlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants

from posenc.cli.errors import one_line
from posenc.cli.models import load_checkpoint

PATIENCE = 5.0  # seconds that the hub has to answer


def create_pretrained(name: str, **options: Any) -> Any:
    """A timm model with the weights of the hub, or of its cache.

    Raises:
        ValueError: there are none for this model, or they cannot be had.
    """
    try:
        with _without_retries():
            return timm.create_model(name, pretrained=True, **options)
    except TypeError:
        raise  # no option of this model
    except Exception as error:
        raise ValueError(
            f"the pretrained weights of {name} cannot be loaded; --weights FILE takes them from a "
            f"file, without a network ({one_line(error)})"
        ) from error


def load_weights(vit: Any, name: str, path: Path) -> None:
    """Of a file for timm; its table of positions is resampled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is that of another model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path} (--weights)")
    try:
        load_checkpoint(vit, name, path, encodings=False)
    except ValueError as error:
        advice = ""
        if "fc_norm" in str(error):
            advice = '; with --pool avg, the option "fc_norm": false in --vit-args keeps the norm'
        raise ValueError(f"{error} (--weights){advice}") from None


@contextlib.contextmanager
def _without_retries() -> Iterator[None]:
    """Asks only the cache of a hub that does not answer: its retries take more than a minute."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE):
            return True
    except urllib.error.HTTPError:
        return True  # it does answer
    except OSError:
        return False
