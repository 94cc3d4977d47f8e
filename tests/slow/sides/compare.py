"""Find the first difference between two results: nested dictionaries of tensors and values."""

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
    for name, keys in (("left", left.keys() - right.keys()), ("right", right.keys() - left.keys())):
        if keys:
            return f"{path}: only on the {name}: {', '.join(sorted(map(str, keys)))}"
    for key in left:
        difference = first_difference(left[key], right[key], f"{path}/{key}" if path else str(key))
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
    kinds = [f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in (left, right)]
    if kinds[0] != kinds[1]:
        return f"{path}: {kinds[0]} | {kinds[1]}"
    if to_bytes(left).equal(to_bytes(right)):
        return None
    bits = [to_bytes(tensor).view(tensor.numel(), -1) for tensor in (left, right)]
    differs = (bits[0] != bits[1]).any(dim=1)
    index = int(differs.nonzero()[0])
    values = [tensor.flatten()[index].item() for tensor in (left, right)]
    largest = (left.double() - right.double()).abs().max().item()
    count = f"{int(differs.sum()):,} of {left.numel():,} numbers, by {largest:.3g} at most"
    return f"{path}: {count}; first {index}: {values[0]!r} | {values[1]!r}"


def to_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def text_difference(left, right, path: str) -> str | None:
    if left == right:
        return None
    pairs = enumerate(zip(left, right))
    index = next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
    around = slice(max(0, index - 20), index + 20)
    sizes = f"sizes {len(left):,} | {len(right):,}" if len(left) != len(right) else "equal sizes"
    return f"{path}: {sizes}, first at {index:,}: {left[around]!r} | {right[around]!r}"


def shorten(value) -> str:
    return f"{type(value).__name__} {value!r:.60}"
