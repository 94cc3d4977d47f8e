"""Find the first difference between two results: nested dictionaries of tensors and values."""

import os

import torch
from torch import Tensor


class SharedKeys(dict):
    """A dictionary of which only the keys that exist on each side are compared."""


def first_difference(left, right, path: str = "") -> str | None:
    """Say where two results differ first, and how; None where they are equal bit for bit."""
    if isinstance(left, SharedKeys) and isinstance(right, SharedKeys):
        shared = [key for key in left if key in right]
        left = {key: left[key] for key in shared}
        right = {key: right[key] for key in shared}
    if type(left) is not type(right):
        return f"{path}: {shorten(left)} | {shorten(right)}"
    if isinstance(left, dict):
        return dict_difference(left, right, path)
    if isinstance(left, list | tuple):
        return list_difference(left, right, path)
    if isinstance(left, Tensor):
        return tensor_difference(left, right, path)
    if isinstance(left, bytes | str):
        return text_difference(left, right, path)
    # repr tells each float from every other, -0.0 from 0.0, and finds nan equal to itself.
    return None if repr(left) == repr(right) else f"{path}: {left!r} | {right!r}"


def dict_difference(left: dict, right: dict, path: str) -> str | None:
    if left.keys() != right.keys():
        only_left = sorted(map(str, left.keys() - right.keys()))
        only_right = sorted(map(str, right.keys() - left.keys()))
        return f"{path}: only on the left: {only_left}, only on the right: {only_right}"
    for key in left:
        deeper = f"{path}/{key}" if path else str(key)
        difference = first_difference(left[key], right[key], deeper)
        if difference:
            return difference
    return None


def list_difference(left, right, path: str) -> str | None:
    for index, (one, other) in enumerate(zip(left, right)):
        difference = first_difference(one, other, f"{path}[{index}]")
        if difference:
            return difference
    return None if len(left) == len(right) else f"{path}: {len(left)} | {len(right)} items"


def tensor_difference(left: Tensor, right: Tensor, path: str) -> str | None:
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return f"{path}: {left.dtype} {left.shape} | {right.dtype} {right.shape}"
    differs = (to_bytes(left) != to_bytes(right)).any(dim=1)
    if not differs.any():
        return None
    index = int(differs.nonzero()[0])
    first = f"first {index}: {left.flatten()[index].item()!r} | {right.flatten()[index].item()!r}"
    largest = (left.double() - right.double()).abs().max().item()
    count = f"{int(differs.sum()):,} of {left.numel():,} numbers"
    return f"{path}: {count}, by {largest:.3g} at most; {first}"


def to_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of each number, (numbers, bytes of one) uint8."""
    flat = tensor.detach().contiguous().view(-1, 1)
    return flat.view(torch.uint8)


def text_difference(left, right, path: str) -> str | None:
    if left == right:
        return None
    index = len(os.path.commonprefix([left, right]))
    around = slice(max(0, index - 20), index + 20)
    sizes = f"sizes {len(left):,} | {len(right):,}"
    return f"{path}: {sizes}, first at {index:,}: {left[around]!r} | {right[around]!r}"


def shorten(value) -> str:
    return f"{type(value).__name__} {value!r:.60}"
